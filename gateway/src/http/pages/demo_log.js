// The event log: what every pane sent and received, newest first.

const ROWS_MAX = 400; // older rows are dropped
const JSON_CHARS_MAX = 20_000; // of one row's content

const element = (id) => document.getElementById(id);
const arrows = { in: '←', out: '→', ack: '✓', life: '•' };
const meanings = { in: 'received', out: 'sent', ack: 'answer', life: 'connection' };

export class EventLog {
  /** @param people pane → display name; @param roomOf (pane, event, data) → room name or ''. */
  constructor(people, roomOf) {
    this.people = people;
    this.roomOf = roomOf;
    this.rows = element('log-rows');
    this.waiting = [];
    this.paused = false;
    this.total = 0;
    for (const [pane, name] of Object.entries(people)) element('log-pane').append(new Option(name, pane));
    element('log-pane').addEventListener('change', () => this.refilter());
    element('log-filter').addEventListener('input', () => this.refilter());
    element('log-clear').addEventListener('click', () => this.clear());
    element('log-pause').addEventListener('click', () => this.pause(!this.paused));
  }

  add(entry) {
    this.total += 1;
    const line = { ...entry, time: new Date() };
    if (this.paused) {
      this.waiting.push(line);
      if (this.waiting.length > ROWS_MAX) this.waiting.shift();
    } else {
      this.show(line);
    }
    this.count();
  }

  show(line) {
    const text = (JSON.stringify(line.data) ?? '').slice(0, JSON_CHARS_MAX);
    const room = this.roomOf(line.pane, line.event, line.data, line.direction);
    const row = document.createElement('li');
    row.className = `row ${line.direction}`;
    row.dataset.pane = line.pane;
    row.dataset.text = `${line.event} ${room} ${text}`.toLowerCase();
    const details = document.createElement('details');
    const summary = document.createElement('summary');
    const failed = line.data?.error || line.event === 'connect_error' || line.event === 'error';
    if (failed) row.classList.add('failed');
    summary.append(
      cell('time', clockText(line.time)),
      cell('pane-name', this.people[line.pane] ?? line.pane),
      cell('arrow', arrows[line.direction], meanings[line.direction]),
      cell('event', line.event),
      cell('ms', line.ackMs === undefined ? '' : `${line.ackMs.toFixed(1)} ms`),
      cell('room', room),
      cell('json', text),
    );
    const full = document.createElement('pre');
    details.addEventListener('toggle', () => {
      full.textContent = (JSON.stringify(line.data, null, 2) ?? '').slice(0, JSON_CHARS_MAX);
    }, { once: true });
    details.append(summary, full);
    row.append(details);
    row.hidden = !this.matches(row);
    this.rows.prepend(row);
    while (this.rows.childElementCount > ROWS_MAX) this.rows.lastElementChild.remove();
  }

  matches(row) {
    const pane = element('log-pane').value;
    const words = element('log-filter').value.trim().toLowerCase();
    return (!pane || row.dataset.pane === pane) && row.dataset.text.includes(words);
  }

  refilter() {
    for (const row of this.rows.children) row.hidden = !this.matches(row);
    this.count();
  }

  pause(paused) {
    this.paused = paused;
    const button = element('log-pause');
    button.setAttribute('aria-pressed', String(paused));
    button.textContent = paused ? 'Resume' : 'Pause';
    if (!paused) this.waiting.splice(0).forEach((line) => this.show(line));
    this.count();
  }

  clear() {
    this.rows.replaceChildren();
    this.waiting = [];
    this.total = 0;
    this.count();
  }

  count() {
    const parts = [`${this.total} ${this.total === 1 ? 'event' : 'events'}`];
    if (this.paused) parts.push(`paused, ${this.waiting.length} waiting`);
    element('log-count').textContent = parts.join(' · ');
    const shown = [...this.rows.children].some((row) => !row.hidden);
    element('log-empty').hidden = shown;
    element('log-empty').textContent = this.rows.childElementCount
      ? 'No event matches the filter.'
      : 'Every event sent and received appears here.';
  }
}

function cell(name, text, title) {
  const span = document.createElement('span');
  span.className = name;
  span.textContent = text;
  if (title) {
    span.title = title;
    span.setAttribute('role', 'img');
    span.setAttribute('aria-label', title);
  }
  return span;
}

function clockText(time) {
  const two = (number) => String(number).padStart(2, '0');
  return `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}.${String(time.getMilliseconds()).padStart(3, '0')}`;
}
