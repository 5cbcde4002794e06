// Folders dropped on a Gradio upload: their files are handed to its own input, which uploads them
// with its own progress. Gradio alone would upload the folder as one empty file.

/** Let the upload with this id take folders. */
export function takeFolders(id) {
  document.addEventListener("drop", (event) => dropped(event, id), { capture: true });
}

async function dropped(event, id) {
  const box = event.target.closest?.(`#${id}`);
  const entries = [...(event.dataTransfer?.items ?? [])].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!box || !entries.some((entry) => entry.isDirectory)) return;
  event.preventDefault();
  event.stopPropagation();
  const files = (await Promise.all(entries.map(filesOf))).flat();
  const input = box.querySelector("input[type=file]");
  if (!input || !files.length) return;
  const held = new DataTransfer();
  for (const file of files) held.items.add(file);
  input.files = held.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}

/** Every file at or below an entry. */
async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((take, fail) => entry.file(take, fail))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((take, fail) => reader.readEntries(take, fail)); // at most 100 at a time
    if (!some.length) return found;
    found.push(...(await Promise.all(some.map(filesOf))).flat());
  }
}
