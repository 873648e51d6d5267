// The section of the settings in the order in which it is read: the text encoder with its table, the source of its weights, and the rest
// folded. The host shows settings in the order in which it applies them, and there the encoder comes after all that it depends on.

(() => {
  const sd3 = window.sd3deploy = window.sd3deploy || {};
  const FIRST = ['text_encoder', 'choices', 'weights', 'weights_file', 'weights_repository', 'sources'];
  const OURS = '#settings_section_tab_sd3_deploy [id^="setting_sd3_"]';

  const settings = (el) => new Set([...el.querySelectorAll('[id^="setting_sd3_"]')].map((one) => one.id)).size; // gradio gives some ids twice
  const block = (el) => { // what the host has put around one setting
    let found = el;
    while (found.parentElement && settings(found.parentElement) === 1) found = found.parentElement;
    return found;
  };

  sd3.arrangeSettings = () => {
    const place = document.querySelector('.sd3-advanced');
    if (place) {
      sd3.fill(place.firstChild, sd3.text('page.advanced'), (text) => [text]); // the texts may come after the page
      return;
    }
    const fields = new Map([...document.querySelectorAll(OURS)].reverse().map((el) => [el.id, el])); // the first of each id
    const ids = FIRST.map((name) => `setting_sd3_${name}`).filter((id) => fields.has(id)); // some may be among the quick settings
    const rest = [...fields.keys()].filter((id) => !ids.includes(id)).reverse();
    const [first, others] = [ids, rest].map((those) => those.map((id) => block(fields.get(id))));
    const parent = first[0]?.parentElement;
    if (!parent || ![...first, ...others].every((el) => el.parentElement === parent)) return; // a host that groups them in another way
    const fold = sd3.element('details', 'sd3-advanced');
    fold.append(sd3.element('summary', '', sd3.text('page.advanced')), ...others);
    parent.prepend(...first, fold);
  };
})();
