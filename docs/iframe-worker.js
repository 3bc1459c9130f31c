// The search runs in a Worker, which browsers refuse to pages opened from disk. For these, a hidden
// frame runs the worker's script instead.
if (location.protocol === "file:") {
  // What a worker's script calls. importScripts cannot wait here, so it gives a promise, which the
  // search waits for.
  const inside = `<script>
    function postMessage(data) { parent.postMessage(data, "*") }
    function load(url) {
      return new Promise((resolve) => {
        const script = document.createElement("script")
        script.src = url
        script.onload = resolve
        document.body.appendChild(script)
      })
    }
    function importScripts(...urls) {
      return urls.reduce((before, url) => before.then(() => load(url)), Promise.resolve())
    }
  </script>`
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      this.frame = frame
      addEventListener("message", (event) => {
        if (event.source === frame.contentWindow)
          this.dispatchEvent(new MessageEvent("message", { data: event.data }))
      })
      const page = frame.contentWindow.document
      page.open()
      page.write(`<body>${inside}<script src="${url}"></script></body>`)
      page.close()
      this.ready = new Promise((resolve) => (frame.contentWindow.onload = resolve))
    }
    postMessage(data) {
      const target = this.frame.contentWindow
      this.ready.then(() => target.dispatchEvent(new MessageEvent("message", { data })))
    }
    terminate() {
      this.frame.remove()
    }
  }
}
