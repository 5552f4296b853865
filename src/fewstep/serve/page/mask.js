// The mask over the drawing: what is marked may be painted anew, the rest of the picture stays.

const COLOUR = "#ff2fd6";

export class Mask {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d", { willReadFrequently: true });
    this.isMarked = false;
  }

  // Whether anything is marked; it is said to who does not see it, too.
  get isMarked() {
    return this.marked;
  }

  set isMarked(value) {
    this.marked = value;
    this.canvas.ariaLabel = `What is marked to change: ${value ? "a part" : "nothing"}`;
  }

  resize(side) {
    this.canvas.width = this.canvas.height = side;
    this.isMarked = false;
  }

  stroke(from, to, width) {
    this.pen.lineCap = this.pen.lineJoin = "round";
    this.pen.strokeStyle = COLOUR;
    this.pen.lineWidth = width;
    this.pen.beginPath();
    this.pen.moveTo(...from);
    this.pen.lineTo(...to);
    this.pen.stroke();
    this.isMarked = true;
  }

  // A rectangle, in parts of the sides.
  fill(left, top, width, height) {
    const [x, right] = [left, left + width].map((share) => Math.round(Math.max(0, Math.min(1, share)) * this.canvas.width));
    const [y, bottom] = [top, top + height].map((share) => Math.round(Math.max(0, Math.min(1, share)) * this.canvas.height));
    if (x >= right || y >= bottom) return; // nothing of it is in the picture
    this.pen.fillStyle = COLOUR;
    this.pen.fillRect(x, y, right - x, bottom - y);
    this.isMarked = true;
  }

  // What it was before.
  bring(marks, isMarked) {
    this.pen.putImageData(marks, 0, 0);
    this.isMarked = isMarked;
  }

  clear() {
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.isMarked = false;
  }

  // As it is shown, to be shown again; null where nothing is marked.
  toShow() {
    return this.isMarked ? this.canvas.toDataURL("image/png") : null;
  }

  // White where it is marked, on black.
  toSend() {
    if (!this.isMarked) return null;
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
    this.isMarked = true;
  }
}
