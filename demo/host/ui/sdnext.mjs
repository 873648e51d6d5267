// The globals that the host gives to scripts of extensions. Options are empty until the page has received them.
window.opts = {};
window.api = '/sdapi/v1';
window.subpath = '';

const queues = { update: [], afterUpdate: [], loaded: [], ready: [], tab: [], options: [] };

const register = (queue) => (callback) => {
  if (typeof callback === 'function' && !queue.includes(callback)) queue.push(callback);
};

function run(queue, arg) {
  for (const callback of queue) {
    try {
      callback(arg);
    } catch (e) {
      window.error(`callback ${callback.name}`, e);
    }
  }
}

window.log = (...args) => console.log(...args);
window.debug = (...args) => console.debug(...args);
window.error = (...args) => console.error(...args);
window.gradioApp = () => {
  const elem = document.getElementsByTagName('gradio-app')[0] || document;
  if (elem !== document) elem.getElementById = (id) => document.getElementById(id);
  return elem.shadowRoot || elem;
};
window.onUiUpdate = register(queues.update);
window.onAfterUiUpdate = register(queues.afterUpdate);
window.onUiLoaded = register(queues.loaded);
window.onUiReady = register(queues.ready);
window.onUiTabChange = register(queues.tab);
window.onOptionsChanged = register(queues.options);
window.updateInput = (target) => target.dispatchEvent(new Event('input', { bubbles: true }));
window.markIfModified = () => {};
window.timer = () => {};

// The page is gone as soon as a restart is asked for; it comes back when the server answers again, which first has to go.
window.restartReload = async (first = true) => {
  document.body.innerHTML = `<h1>Server ${first ? 'shutdown' : 'restart'} in progress...</h1>`;
  await new Promise((done) => { setTimeout(done, first ? 4000 : 1000); });
  const res = await window.authFetch('/sdapi/v1/progress').catch(() => null);
  if (res?.ok) window.location.reload();
  else window.restartReload(false);
};
window.extensions_apply = (_disabled, _update, disableAll) => {
  const off = [...document.querySelectorAll('#extensions input[name^="enable_"]')].filter((box) => !box.checked);
  window.restartReload();
  return [JSON.stringify(off.map((box) => box.name.substring(7))), '[]', disableAll];
};

let session;
window.authFetch = async (url, options = {}) => {
  if (!session) session = await fetch('/token').then((res) => (res.ok ? res.json() : {}));
  if (session.user && session.token) {
    const headers = new Headers(options.headers);
    headers.set('Authorization', `Basic ${btoa(`${session.user}:${session.token}`)}`);
    options.headers = headers;
  }
  return fetch(url, options);
};

// The settings live in a hidden text box; whoever changes its value changes the options of this page, and of no other.
function watchSettings() {
  const box = window.gradioApp().querySelector('#settings_json textarea');
  if (!box) return false;
  const { get, set } = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value');
  const take = (text) => {
    if (!text) return;
    window.opts = JSON.parse(text).values;
    run(queues.options);
  };
  Object.defineProperty(box, 'value', {
    get() { return get.call(box); },
    set(text) {
      const before = get.call(box);
      set.call(box, text);
      if (text !== before) take(text);
    },
  });
  take(get.call(box));
  return true;
}

let loaded = false;
let pending;
new MutationObserver(() => {
  run(queues.update);
  clearTimeout(pending);
  pending = setTimeout(() => run(queues.afterUpdate), 200);
  if (!loaded && window.gradioApp().querySelector('#txt2img_prompt')) {
    loaded = true;
    run(queues.loaded);
    const timer = setInterval(() => {
      if (!watchSettings()) return;
      clearInterval(timer);
      run(queues.ready);
    }, 100);
  }
}).observe(document, { childList: true, subtree: true });
