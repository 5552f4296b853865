// Keys of the whole page; the list of them is a dialog, from which Escape leads back to where one was.

const part = (id) => document.getElementById(id);
const isField = (element) => element.matches("textarea, select, input:not([type=range], [type=checkbox])");

export function listenToKeys({ paint, paintAnother }) {
  part("show-keys").addEventListener("click", () => part("keys").showModal());
  document.addEventListener("keydown", (event) => {
    if (part("keys").open) return;
    const isCommand = event.ctrlKey || event.metaKey;
    const act =
      event.key === "Enter" && isCommand ? (event.shiftKey ? paintAnother : paint)
      : event.key === "Escape" && isField(event.target) ? () => event.target.blur()
      : isCommand || event.altKey || isField(event.target) ? null
      : event.key === "?" ? () => part("keys").showModal()
      : event.key === "/" ? () => part("prompt").focus()
      : null;
    if (!act) return;
    event.preventDefault();
    act();
  });
}
