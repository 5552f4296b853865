// The mask over the drawing: what is marked may be painted anew, the rest of the picture stays.

export class Mask {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d");
    this.marked = false;
  }

  resize(side) {
    this.canvas.width = this.canvas.height = side;
    this.marked = false;
  }

  stroke(from, to, width) {
    this.pen.lineCap = this.pen.lineJoin = "round";
    this.pen.strokeStyle = "#ff2fd6";
    this.pen.lineWidth = width;
    this.pen.beginPath();
    this.pen.moveTo(...from);
    this.pen.lineTo(...to);
    this.pen.stroke();
    this.marked = true;
  }

  clear() {
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.marked = false;
  }

  // As it is shown, to be shown again; null where nothing is marked.
  toShow() {
    return this.marked ? this.canvas.toDataURL("image/png") : null;
  }

  // White where it is marked, on black.
  toSend() {
    if (!this.marked) return null;
    const flat = document.createElement("canvas");
    [flat.width, flat.height] = [this.canvas.width, this.canvas.height];
    const pen = flat.getContext("2d");
    pen.drawImage(this.canvas, 0, 0);
    pen.globalCompositeOperation = "source-in";
    pen.fillStyle = "#ffffff";
    pen.fillRect(0, 0, flat.width, flat.height);
    pen.globalCompositeOperation = "destination-over";
    pen.fillStyle = "#000000";
    pen.fillRect(0, 0, flat.width, flat.height);
    return flat.toDataURL("image/png");
  }

  async show(source) {
    this.clear();
    if (!source) return;
    const image = new Image();
    image.src = source;
    await image.decode();
    this.pen.drawImage(image, 0, 0, this.canvas.width, this.canvas.height);
    this.marked = true;
  }
}
