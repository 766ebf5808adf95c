// Keys 1 to 5 answer the statement that is shown, unless somebody writes.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest("input, textarea, select, [contenteditable]")) {
    if (!event.target.matches("input[type=radio]")) return;
  }
  const button = /^[1-5]$/.test(event.key) && document.getElementById(`answer-${event.key}`);
  if (button && button.offsetParent && !button.disabled) {
    event.preventDefault();
    button.click();
  }
});
// Gradio's dropdown opens its list once more when the Tab key has left it, over whatever lies below.
document.addEventListener("keydown", (event) => {
  if (event.key === "Tab" && event.target.matches("#beside input")) event.stopImmediatePropagation();
}, true);
document.documentElement.lang = "en";
