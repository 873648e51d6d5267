// Keeps the page up to date. Asks the server while something is under way or has just been asked for, and once a minute otherwise;
// never while the page is hidden. What is shown where is in the other files of this folder.

(() => {
  const sd3 = window.sd3deploy = window.sd3deploy || {};
  if (sd3.wake) return; // of another copy of the extension: one of them asks
  const TABS = ['txt2img', 'img2img', 'control'];
  const BUSY_MS = 1000;
  const IDLE_MS = 60000;
  const AWAKE_MS = 15000; // after a change of settings or a click on Generate: the server needs a moment to be busy
  const RECENT_S = 60; // a page that is opened later is not told what happened hours ago
  const WAKES = '#settings_submit, #quicksettings, [id$="_generate"], .sd3-verify, .sd3-quality, .sd3-install, .sd3-cancel, [id$="_sd3_deploy_apply"]';

  let seen = Number(sessionStorage.getItem('sd3-seen') || 0);
  let server = sessionStorage.getItem('sd3-server');
  let awakeUntil = 0;
  let timer = null;
  let lastRun = -1; // the number of the last load or job of the server
  const working = { verify: true, install: true, quality: true }; // is under way, or has been since the page last looked

  const work = async (kind, now) => {
    if (now || working[kind]) await sd3.showWork[kind]();
    working[kind] = now;
  };

  const look = async () => {
    await sd3.language();
    const answer = await sd3.get(`events?since=${seen}&server=${encodeURIComponent(server || '')}`);
    if (answer.server !== server) { // another process numbers its events anew
      server = answer.server;
      seen = 0;
      sessionStorage.setItem('sd3-server', server);
    }
    sd3.showLoad(answer);
    for (const event of answer.events) {
      seen = event.seq;
      if (answer.now - event.time < RECENT_S) sd3.toast({ ...event, server }, answer.now - event.time);
    }
    sd3.settle(answer.over, server);
    sessionStorage.setItem('sd3-seen', seen);
    if (answer.events.length > 0 || answer.run !== lastRun) { // a picture that was made may be the end of a failure
      await sd3.showState();
      sd3.follow(true);
    }
    lastRun = answer.run;
    for (const el of document.querySelectorAll('button.sd3-cancel')) el.hidden = !(answer.verifying || answer.installing || answer.measuring || answer.loading);
    await work('verify', answer.verifying);
    await work('install', answer.installing);
    await work('quality', answer.measuring);
    return answer.active;
  };

  const poll = async () => {
    timer = null;
    if (document.hidden) return; // the visibilitychange below wakes it again
    let active = false;
    try {
      active = await look();
    } catch (err) {
      console.debug(String(err)); // the server restarts, or the login has run out: try again later
    }
    schedule(active || Date.now() < awakeUntil ? BUSY_MS : IDLE_MS);
  };

  const schedule = (ms) => {
    if (timer) clearTimeout(timer);
    timer = setTimeout(poll, ms);
  };

  sd3.wake = () => {
    awakeUntil = Date.now() + AWAKE_MS;
    schedule(BUSY_MS / 2);
  };

  const updated = () => { // the host has changed the page: ModernUI moves everything when all else is there
    sd3.addAgain();
    sd3.arrangeSettings();
    sd3.watchEncoders(TABS);
    sd3.showDefaults();
    sd3.showRun();
    sd3.describeButtons();
    sd3.describeSave();
    sd3.readFromTop();
    sd3.revealAnswers();
    sd3.translate();
    sd3.follow();
  };

  const start = async () => {
    sd3.keepPlaces();
    document.addEventListener('visibilitychange', () => { if (!document.hidden) sd3.wake(); });
    document.addEventListener('click', (e) => {
      if (!e.target.closest) return;
      if (e.target.closest(WAKES)) sd3.wake();
      for (const kind of ['verify', 'quality', 'install']) if (e.target.closest(`.sd3-panel .sd3-${kind}`)) sd3.expect(kind);
      const pressed = e.target.closest('.sd3-panel .sd3-install, .sd3-panel .sd3-cancel, .sd3-panel .sd3-copy, .sd3-end');
      if (pressed) sd3.act(pressed.matches('.sd3-install') ? 'install' : pressed.matches('.sd3-cancel') ? 'cancel' : 'report');
    }, true);
    if (window.onAfterUiUpdate) window.onAfterUiUpdate(updated);
    if (window.onOptionsChanged) window.onOptionsChanged(() => { lastRun = -1; sd3.wake(); });
    for (const name of ['input', 'change', 'load']) document.addEventListener(name, () => sd3.follow(), true);
    await sd3.language().catch(console.debug);
    sd3.restoreToasts();
    updated();
    sd3.wake();
  };

  if (window.onUiLoaded) window.onUiLoaded(start);
  else document.addEventListener('DOMContentLoaded', start);
})();
