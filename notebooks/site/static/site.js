// Printed pages show what is folded: answers, and the notes for the lecturer. Closed again when the printing is done.
const folded = () => document.querySelectorAll("details:not([open])");
let opened = [];
window.addEventListener("beforeprint", () => {
  opened = [...folded()];
  opened.forEach((element) => (element.open = true));
});
window.addEventListener("afterprint", () => opened.forEach((element) => (element.open = false)));
