// A camera's frames in the page, one after the other. Only in pages with a model.

const CAMERA = { // what a browser says, and what to do
  NotAllowedError: "The camera isn't allowed: allow it for this page, beside its address, and press “camera” again.",
  NotFoundError: "There is no camera: connect one, and press “camera” again.",
  NotReadableError: "The camera is in use: close the other program, and press “camera” again.",
};

class Camera {
  constructor(live) {
    this.live = live;
    this.stream = null; // while it runs
    this.button = make("button", { type: "button", class: "upload", title: "Show and compute what a camera sees",
      onclick: () => this.stream ? this.stop() : this.start() }, "camera");
  }

  async start() {
    const { explorer } = this.live, { mediaDevices } = navigator;
    if (!mediaDevices) return explorer.say("A camera needs a page from this computer or by https: open it there.", true);
    try {
      this.stream = await mediaDevices.getUserMedia({ video: true });
    } catch ({ name, message }) {
      return explorer.say(CAMERA[name] ?? `The camera can't be used (${message}): try another browser.`, true);
    }
    const video = make("video", { playsinline: true });
    [video.muted, video.srcObject] = [true, this.stream];
    this.stream.getVideoTracks()[0].addEventListener("ended", () => this.stop()); // it was unplugged
    this.show();
    await video.play();
    await this.film(video);
    this.stop(); // also after a problem
  }

  stop() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = null;
    this.show();
  }

  show() {
    write(this.button, this.stream ? "stop camera" : "camera");
    for (const spoken of this.live.element.querySelectorAll(".about, .summary")) // not every frame
      spoken.setAttribute("aria-live", this.stream ? "off" : "polite");
  }

  /** Compute frames, never two at once; none while another image is shown. At last, the effects of hiding. */
  async film(video) {
    const { live } = this;
    let place; // among the images; known once it is the first frame's turn
    const frame = () => {
      place ??= live.data.images.length;
      return live.put(`camera, image ${place + 1}`, live.fit(video, video.videoWidth, video.videoHeight), place, true);
    };
    do {
      if (!(await live.queue(frame))) return;
      do await new Promise(requestAnimationFrame); while (this.stream && live.explorer.state.image !== place);
    } while (this.stream);
    live.queue(() => live.put(live.data.images[place].title, live.pixels[place], place));
  }
}
