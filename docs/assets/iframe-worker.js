// The search runs in a worker, and a page that was opened from a folder may not start one: there it runs in a hidden
// frame. MkDocs' theme would load a script of this name from another host.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.answer = data => this.dispatchEvent(new MessageEvent("message", { data }))
      frame.srcdoc =
        "<script>postMessage = data => frameElement.answer(data)</script><script src=\"" + url + "\"></script>"
      this.loaded = new Promise(resolve => frame.addEventListener("load", () => resolve(frame.contentWindow)))
      document.body.appendChild(frame)
    }

    postMessage(data) {
      this.loaded.then(inside => inside.dispatchEvent(new MessageEvent("message", { data })))
    }
  }
}
