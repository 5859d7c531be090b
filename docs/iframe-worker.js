// The search wants a Worker, which browsers do not give to pages that are read from files: there a hidden frame is one.
if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = "<!doctype html><body></body>";
      this.frame.onload = () => this.begin(url);
      document.documentElement.append(this.frame);
    }

    begin(url) {
      const inner = this.frame.contentWindow;
      const load = (address) =>
        new Promise((loaded, failed) => {
          const script = inner.document.createElement("script");
          Object.assign(script, { src: address, onload: loaded, onerror: failed });
          inner.document.body.append(script);
        });
      inner.importScripts = (...addresses) => addresses.reduce((done, each) => done.then(() => load(each)), Promise.resolve());
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      load(url).then(() => {
        const waiting = this.waiting;
        this.waiting = null;
        waiting.forEach((data) => this.postMessage(data));
      });
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
