// What the buttons of messages and of the panel do. Those that change an installation say first what they would do, and ask.

(() => {
  const sd3 = window.sd3deploy = window.sd3deploy || {};

  // A dialog of the browser keeps the focus inside and gives it back. Escape would end it, but SD.Next takes that key for itself.
  const dialog = (title, ...content) => {
    const el = sd3.element('dialog', 'sd3-dialog');
    const head = sd3.element('h2', '', title);
    head.id = 'sd3-dialog-title';
    el.setAttribute('aria-labelledby', head.id);
    el.append(head, ...content);
    el.addEventListener('close', () => el.remove());
    el.addEventListener('keydown', (e) => { if (e.key === 'Escape') el.close(); });
    document.body.append(el);
    el.showModal();
    return el;
  };

  const buttons = (...those) => {
    const row = sd3.element('div', 'sd3-buttons');
    row.append(...those);
    return row;
  };

  const install = async () => {
    const plan = await sd3.post('install', { dry_run: true, repair: true });
    const close = (text) => sd3.button('sd3-close', text, () => el.close());
    const text = sd3.element('pre', 'sd3-plan', plan.text);
    text.tabIndex = 0; // it may have to be scrolled
    const go = sd3.button('sd3-action', sd3.text('page.install.go'), async () => {
      el.close();
      await sd3.post('install', { repair: true }).catch(sd3.fail);
      sd3.wake();
    });
    const el = plan.empty
      ? dialog(sd3.text('page.install.title'), text, buttons(close(sd3.text('page.close'))))
      : dialog(sd3.text('page.install.title'), sd3.element('p', '', sd3.text('page.install.ask')), text, buttons(go, close(sd3.text('page.install.not-now'))));
  };

  const report = async () => {
    const text = await sd3.readable('report?format=markdown');
    try {
      await navigator.clipboard.writeText(text);
      sd3.say(sd3.text('page.copied'));
    } catch { // a page without https, or a browser that asks and was told no
      const area = sd3.element('textarea', 'sd3-plan');
      area.value = text;
      area.readOnly = true;
      area.setAttribute('aria-label', sd3.text('page.not-copied'));
      const el = dialog(sd3.text('page.not-copied'), area, buttons(sd3.button('sd3-close', sd3.text('page.close'), () => el.close())));
      area.rows = 24;
      area.select();
      area.scrollTop = 0; // it is read from its beginning; the browser shows the end of what is selected
    }
  };

  const ACTIONS = {
    install,
    report,
    apply: async ({ fields }, tab) => { // what is the job's own is written, the rest is a setting
      const { width, height, batch, ...settings } = fields;
      const own = Object.fromEntries(Object.entries({ width, height, batch }).filter(([, value]) => value !== undefined));
      const job = Object.fromEntries([...sd3.job(tab)].map(([name, value]) => [name, Number(value)]).filter(([, value]) => Number.isFinite(value)));
      const { done } = await sd3.post('memory/apply', { ...job, ...own, ...settings });
      sd3.write(tab, own);
      if (settings.encoder) await sd3.takeSettings(tab); // or the page would keep another one
      sd3.say(done);
    },
    use: async ({ fields }, tab) => sd3.write(tab, fields),
    generate: async (action, tab) => document.getElementById(`${tab}_generate`).click(),
    cancel: async () => {
      await sd3.post('cancel');
      sd3.wake();
    },
    reload: async () => {
      sd3.say(sd3.text('page.reloading'), 'info');
      sd3.wake();
      await sd3.host('reload-checkpoint');
      sd3.say(sd3.text('page.reloaded'));
    },
    restart: async () => {
      sd3.say(sd3.text('page.restarting'), 'warning');
      const own = document.getElementById('restart_submit');
      try {
        await sd3.host('restart');
      } catch (error) {
        if (error.status !== 404 || !own) throw error;
        own.click(); // of a host before 2026-07, whose API has no restart
        return;
      }
      if (window.restartReload) window.restartReload();
    },
    again: async () => sd3.unquiet(),
  };

  // The buttons of a message, in a row. press: called first. age: of the message in seconds.
  sd3.actions = (those, tab, press = () => {}, age = 0) => {
    const row = sd3.element('div', 'sd3-buttons');
    for (const one of those.filter((each) => each.id in ACTIONS && (!each.seconds || each.seconds > age))) {
      const el = sd3.button('sd3-action', one.label, () => { press(); sd3.act(one, tab); });
      if (one.seconds) setTimeout(() => el.remove(), 1000 * (one.seconds - age)); // later it would not do what it says
      row.append(el);
    }
    return row;
  };

  sd3.describeSave = () => { // why it can not be pressed
    for (const el of document.querySelectorAll('[id$="_sd3_deploy_save"]')) {
      const text = el.disabled ? sd3.text('page.save.hint') : '';
      if (el.title !== text) el.title = text;
    }
  };

  // id: of an action without anything of its own, or a button of the server's.
  sd3.act = async (action, tab = sd3.tab()) => {
    try {
      await sd3.language();
      await ACTIONS[action.id || action](action, tab);
    } catch (error) {
      sd3.fail(error);
    }
  };
})();
