// Runs on the browser's audio thread: hands the first channel of the microphone on, 2048 samples at a time.

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.held = new Float32Array(2048);
    this.length = 0;
  }

  process([[samples]]) {
    for (let i = 0; i < (samples?.length ?? 0); i++) {
      this.held[this.length++] = samples[i];
      if (this.length === this.held.length) {
        this.port.postMessage(this.held.slice());
        this.length = 0;
      }
    }
    return true;
  }
}

registerProcessor("recorder", Recorder);
