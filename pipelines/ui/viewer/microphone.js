// A microphone that loses nothing: what was recorded waits until the server has heard what was sent
// before. (Gradio's own streaming overwrites sound that the server has not fetched yet.)

import { element, word } from "./words.js";

const LEAST_S = 1; // of sound in one message
const PATIENCE_MS = 15000; // then the next is sent without an answer

class Microphone {
  constructor(host, act) {
    this.act = act;
    this.waiting = []; // pieces not sent yet
    this.number = 0; // of the message on its way
    this.button = word(element("button", "cr-button"), "record");
    this.button.type = "button";
    this.button.setAttribute("aria-pressed", "false");
    this.button.addEventListener("click", () => (this.context ? this.stop() : this.start()));
    this.level = element("meter", "cr-level");
    this.level.max = 0.3;
    word(this.level, "loudness", "label");
    this.note = element("span", "cr-soft");
    this.note.setAttribute("role", "status");
    host.classList.add("cr-microphone");
    host.replaceChildren(this.button, this.level, this.note);
  }

  /** The server's answer: which message it has heard. */
  show(value) {
    if (value?.heard !== this.number) return;
    this.pending = false;
    this.send();
  }

  async start() {
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch {
      word(this.note, "no_microphone");
      return;
    }
    delete this.note.dataset.say;
    this.note.textContent = "";
    this.act("begin", {});
    this.context = new AudioContext();
    await this.context.audioWorklet.addModule(new URL("recorder.js", import.meta.url));
    const source = this.context.createMediaStreamSource(this.stream);
    const recorder = new AudioWorkletNode(this.context, "recorder");
    recorder.port.onmessage = ({ data }) => this.take(data);
    source.connect(recorder);
    this.rate = this.context.sampleRate;
    word(this.button, "stop_recording");
    this.button.setAttribute("aria-pressed", "true");
  }

  take(samples) {
    this.waiting.push(samples);
    this.level.value = Math.hypot(...samples) / Math.sqrt(samples.length);
    this.send();
  }

  stop() {
    for (const track of this.stream.getTracks()) track.stop();
    this.context.close();
    this.context = null;
    this.level.value = 0;
    word(this.button, "record");
    this.button.setAttribute("aria-pressed", "false");
    this.send();
  }

  send() {
    const length = this.waiting.reduce((sum, piece) => sum + piece.length, 0);
    if (this.pending || !length || (this.context && length < LEAST_S * this.rate)) return;
    const sound = new Int16Array(length);
    let at = 0;
    for (const piece of this.waiting) for (const v of piece) sound[at++] = Math.max(-1, Math.min(1, v)) * 32767;
    this.waiting = [];
    this.pending = true;
    this.number += 1;
    this.act("sound", { number: this.number, rate: this.rate, sound: base64(new Uint8Array(sound.buffer)) });
    clearTimeout(this.patience);
    this.patience = setTimeout(() => this.show({ heard: this.number }), PATIENCE_MS);
  }
}

function base64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return btoa(text);
}

/** Build the microphone within an element; `act(name, data)` tells what was recorded. */
export function mount(host, act) {
  return new Microphone(host, act);
}
