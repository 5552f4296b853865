// The film strip: what the picture is after each step; a frame that is pressed is shown large.

export class Strip {
  constructor(list, enlarge) {
    this.list = list;
    this.enlarge = enlarge;
  }

  clear() {
    this.list.replaceChildren();
    this.list.hidden = true;
    this.list.classList.remove("late");
  }

  // What it shows belongs to a picture before; the new frames are on their way.
  fade() {
    this.list.classList.add("late");
  }

  add(url, step, alt, isShown) {
    if (this.list.classList.contains("late")) this.clear();
    const item = document.createElement("li");
    const button = document.createElement("button");
    const image = document.createElement("img");
    image.src = url;
    image.alt = "";
    image.className = "pixels"; // no more of them are seen here than there are
    button.type = "button";
    button.append(image, `step ${step}`);
    button.addEventListener("click", () => { this.press(button); this.enlarge(url, alt); });
    item.append(button);
    this.list.append(item);
    this.list.hidden = false;
    if (isShown) this.press(button);
    else button.ariaPressed = "false";
  }

  press(button) {
    for (const each of this.list.querySelectorAll("button")) each.ariaPressed = String(each === button);
  }
}
