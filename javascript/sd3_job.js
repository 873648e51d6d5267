// What will happen to the job that is being described: short in the chip near Generate, at length in the panel.
// Follows each key; the server has the rules.

(() => {
  const sd3 = window.sd3deploy = window.sd3deploy || {};
  const TABS = ['txt2img', 'img2img', 'control'];
  const GAP_MS = 60; // between two questions, while somebody types or drags
  const MANY = 200; // questions in a minute; the host answers 300 of them
  const SLOW_MS = 1000;
  const TYPED_MS = 300; // after the last key in a prompt
  // Parameter of the API → ids after that of the tab, whatever theme has moved the fields where.
  const FIELDS = {
    width: ['width', 'before_resize_width'],
    height: ['height', 'before_resize_height'],
    batch: ['batch_size'],
    steps: ['steps'],
    guidance: ['cfg_scale'],
    sampler: ['sampling'],
  };
  const PROMPTS = { prompt: 'prompt', negative_prompt: 'neg_prompt' };
  const LONGEST = 8000; // characters; two prompts and their escapes are well below 64 KiB
  const OVERRIDES = { encoder: 'encoder', size_guard: 'size', vram_check: 'memory', sampler_guard: 'sampling' };
  const AS_SET = 'As in Settings';

  const field = (tab, names) => names
    .map((name) => document.querySelector(`#${tab}_${name} input[type=number], #${tab}_${name} input:not([type=range])`))
    .find((el) => el && el.value !== '');

  const chosen = (tab, name) => {
    if (name === OVERRIDES.encoder) return sd3.nextEncoder(sd3.encoder(tab));
    const el = document.querySelector(`#script_${tab}_sd3_deploy_${name} input:checked`);
    return el && el.value !== AS_SET ? el.value : null;
  };

  const SIDES = { width: 'naturalWidth', height: 'naturalHeight' };
  const PICTURE = ['image', 'input_select']; // that is put in, after the tab

  // A size of 0 is that of the picture that is put in.
  const given = (tab, name, value) => {
    if (tab === 'txt2img' || !SIDES[name] || Number(value) !== 0) return value;
    const picture = PICTURE.map((id) => document.querySelector(`#${tab}_${id} img`)).find(Boolean);
    return (picture && picture[SIDES[name]]) || '';
  };

  const question = (tab) => {
    const values = new URLSearchParams();
    for (const [name, ids] of Object.entries(FIELDS)) {
      const el = field(tab, ids);
      const value = el ? given(tab, name, el.value) : '';
      if (value !== '') values.set(name, value);
    }
    for (const [name, id] of Object.entries(OVERRIDES)) {
      const value = chosen(tab, id);
      if (value) values.set(name, value);
    }
    for (const [name, id] of Object.entries(PROMPTS)) {
      const text = (document.querySelector(`#${tab}_${id} textarea`) || {}).value || '';
      if (text.length <= LONGEST) values.set(name, text); // a longer one is for Generate: no request may be so large
    }
    return values;
  };

  const MEMORY = ['width', 'height', 'batch', 'guidance', 'encoder']; // what the estimate depends on
  const only = (values, names) => {
    const some = new URLSearchParams();
    for (const name of names) if (values.has(name)) some.set(name, values.get(name));
    return some;
  };

  // The size that it will be made in counts, not the one that is typed.
  const mended = (tab, values, checked) => {
    const result = only(values, MEMORY);
    if (checked && checked.code < 2) for (const name of Object.keys(SIDES)) result.set(name, checked[name]);
    return result;
  };

  const answers = {}; // tab → what the check has said last
  sd3.memoryQuestion = (tab) => mended(tab, question(tab), answers[tab]).toString();

  const estimates = {}; // tab → what the server said last about its memory
  sd3.estimate = (tab) => estimates[tab] || {};

  sd3.tab = () => TABS.find((tab) => sd3.visible(document.getElementById(`${tab}_generate`))) || latest;

  sd3.job = (tab) => only(mended(tab, question(tab), answers[tab]), ['width', 'height', 'batch', 'guidance']); // what a recommendation depends on

  sd3.write = (tab, values) => { // into the fields, as if typed
    for (const [name, value] of Object.entries(values)) {
      const el = FIELDS[name] && field(tab, FIELDS[name]);
      if (!el) continue;
      el.value = value;
      for (const event of ['input', 'change']) el.dispatchEvent(new Event(event, { bubbles: true }));
    }
  };

  const will = (found) => {
    if (found.length === 0) return sd3.element('p', '', sd3.text('page.job.as-asked'));
    const list = sd3.element('ul', 'sd3-list');
    for (const one of found) {
      const row = sd3.element('li', `sd3-will sd3-${one.action}`, one.told || one.message);
      if (one.remedy && one.action !== 'apply') row.append(sd3.element('span', 'sd3-remedy', one.remedy));
      list.append(row);
    }
    return list;
  };

  // What a guard says of the job, and what the memory or a missing encoder does to it.
  const told = ({ findings, hints, memory }) => {
    const lacks = hints.filter((one) => one.kind === 'encoder').map((one) => ({ action: 'apply', message: one.sentence }));
    const large = lacks.length === 0 && memory && memory.answer === 'no' ? [{ action: 'tell', message: memory.line }] : [];
    return [...findings, ...lacks, ...large];
  };

  // Of a picture that is still to be put in nobody knows the size: that of a model is no answer to it.
  const unsized = (answer) => ({
    ...answer,
    findings: answer.findings.filter((one) => one.id !== 'size.default'),
    hints: answer.hints.filter((one) => one.kind !== 'size'),
  });

  // What this page has chosen and has failed is not tried again, and asked about no more: the page says what is made instead.
  const left = (tab) => {
    const words = sd3.leftEncoder(sd3.encoder(tab));
    if (!words) return [];
    return [{ kind: 'encoder', severity: 'change', text: sd3.text('page.headline.failed', words), sentence: sd3.text('page.job.left', words), buttons: [] }];
  };

  const showCheck = (tab, found) => { // null where there is no Stable Diffusion 3 to talk about
    const answer = found && { ...found, hints: [...left(tab), ...found.hints] };
    sd3.chip(tab, answer ? answer.hints : []);
    for (const area of document.querySelectorAll(`#script_${tab}_sd3_deploy_job .sd3-job`)) {
      sd3.fill(area, answer && told(answer), (found) => (found ? [sd3.element('h3', '', sd3.text('page.job')), will(found)] : []));
    }
  };

  const showMemory = (tab, answer) => {
    sd3.showMemory(tab, answer);
    sd3.showChoices(Object.entries(answer.choices || {}));
    sd3.showRun((answer.runs || []).slice(-1)[0]);
  };

  const times = []; // of the questions of the last minute
  const gap = () => {
    const now = Date.now();
    while (times.length > 0 && times[0] < now - 60000) times.shift();
    return times.length > MANY ? SLOW_MS : GAP_MS;
  };

  let latest = TABS[0]; // that was looked at
  let typed = 0; // when a key was pressed in a prompt
  document.addEventListener('input', (e) => {
    if (e.target.matches && e.target.matches('[id$="_prompt"] textarea')) typed = Date.now();
  }, true);

  const asked = {}; // tab → the questions whose answers are shown
  const running = {}; // tab → whether one is under way
  const ask = async (tab) => {
    if (running[tab]) return; // it looks again when it is done
    running[tab] = true;
    try {
      for (;;) {
        const wait = TYPED_MS - (Date.now() - typed);
        if (wait > 0) { // a word is being typed
          await new Promise((done) => { setTimeout(done, wait); });
          continue;
        }
        const values = question(tab);
        const job = values.toString();
        const before = asked[tab] || {};
        if (job === before.job) break;
        asked[tab] = { ...before, job };
        times.push(Date.now());
        const checked = await sd3.post('check', Object.fromEntries(values)).catch((error) => (error.status === 422 ? null : Promise.reject(error)));
        answers[tab] = checked && !values.has('width') ? unsized(checked) : checked;
        showCheck(tab, answers[tab]);
        const memory = mended(tab, values, answers[tab]).toString();
        if (memory !== before.memory) {
          asked[tab].memory = memory;
          estimates[tab] = await sd3.get(`memory?${memory}`);
          showMemory(tab, estimates[tab]);
        }
        sd3.showHeadline(tab);
        await new Promise((done) => { setTimeout(done, gap()); });
      }
    } catch (error) {
      delete asked[tab]; // the next key asks again
      console.debug(String(error));
    } finally {
      running[tab] = false;
    }
  };

  const shown = (tab) => sd3.visible(document.getElementById(`${tab}_generate`)) || sd3.visible(document.querySelector(`#script_${tab}_sd3_deploy_panel`));

  // anew: something has happened on the server, the same question may have another answer.
  sd3.follow = (anew = false) => {
    if (anew) for (const tab of TABS) delete asked[tab];
    if (document.hidden) return;
    const open = TABS.filter(shown);
    if (open.length > 0) [latest] = open;
    if (open.length === 0 && sd3.visible(document.querySelector('.sd3-choices'))) open.push(TABS[0]); // the settings show it, too
    open.forEach(ask);
    sd3.showSources(anew);
  };

})();
