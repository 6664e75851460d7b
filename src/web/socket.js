// One WebSocket that comes back by itself. Knows time and the browser's events; not frames' meaning.

const PONG_MS = 2000;
const OPEN_MS = 5000;
const FIRST_MS = 500;
const LONGEST_MS = 15000;
const STALE_MS = 5000;

export class Socket {
  // `on` has: open(), frame(object), closed(), waiting(reason, seconds), unauthorised().
  // `check` asks the server over HTTP whether and why not; it resolves to null when all is well,
  // to 'unauthorised', or to a reason.
  constructor(url, check, on) {
    this.url = url;
    this.check = check;
    this.on = on;
    this.socket = null;
    this.tries = 0;
    this.timer = null;
    this.heartbeat = 30000;
    this.pingTimer = null;
    this.deadTimer = null;
    this.hiddenAt = null;
    this.generation = 0;
    document.addEventListener('visibilitychange', () => {
      this.sayPresence();
      if (document.visibilityState === 'hidden') this.hiddenAt = Date.now();
      else this.woken();
    });
    window.addEventListener('online', () => this.woken());
    window.addEventListener('pageshow', (event) => {
      if (event.persisted) this.woken();
    });
    window.addEventListener('offline', () => this.ping());
  }

  // Connects now, whatever was going on.
  async connect() {
    this.stop();
    const mine = this.generation;
    const why = await this.check();
    if (mine !== this.generation) return;
    if (why === 'unauthorised') {
      this.on.unauthorised();
      return;
    }
    if (why) {
      this.later(why);
      return;
    }
    const socket = new WebSocket(this.url);
    this.socket = socket;
    // The server speaks first; until then the browser itself would wait for minutes.
    this.deadTimer = setTimeout(() => this.lost('no answer'), OPEN_MS);
    socket.onopen = () => {
      if (socket !== this.socket) return;
      this.send({ type: 'hello', protocol: 1, client: pageName() });
      this.sayPresence();
      this.schedulePing();
      this.on.open();
    };
    socket.onmessage = (message) => {
      if (socket !== this.socket || typeof message.data !== 'string') return;
      this.tries = 0;
      clearTimeout(this.deadTimer);
      this.deadTimer = null;
      const frame = JSON.parse(message.data);
      if (frame.kind === 'hello' && frame.heartbeatMs > 0) {
        this.heartbeat = frame.heartbeatMs;
        this.schedulePing();
      }
      this.on.frame(frame);
    };
    socket.onclose = (event) => {
      if (socket !== this.socket) return;
      this.lost(event.reason || reason(event.code));
    };
  }

  get isOpen() {
    return this.socket !== null && this.socket.readyState === WebSocket.OPEN;
  }

  send(frame) {
    if (!this.isOpen) return false;
    this.socket.send(JSON.stringify(frame));
    return true;
  }

  stop() {
    this.generation += 1;
    clearTimeout(this.timer);
    clearInterval(this.timer);
    clearTimeout(this.pingTimer);
    clearTimeout(this.deadTimer);
    this.deadTimer = null;
    const socket = this.socket;
    this.socket = null;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
      this.on.closed();
    }
  }

  lost(why) {
    this.stop();
    this.later(why);
  }

  // Tries again after a while, and says each second how long it will be.
  later(why) {
    const full = Math.min(FIRST_MS * 2 ** this.tries, LONGEST_MS);
    this.tries = Math.min(this.tries + 1, 10);
    const at = Date.now() + full * (0.5 + Math.random() / 2);
    const tick = () => {
      const left = at - Date.now();
      if (left <= 0) this.connect();
      else this.on.waiting(why, Math.ceil(left / 1000));
    };
    this.on.waiting(why, Math.ceil((at - Date.now()) / 1000));
    this.timer = setInterval(tick, 250);
  }

  // Whoever looks at the page needs no notification.
  sayPresence() {
    this.send({ type: 'presence', visible: document.visibilityState === 'visible' });
  }

  schedulePing() {
    clearTimeout(this.pingTimer);
    this.pingTimer = setTimeout(() => {
      this.ping();
      this.schedulePing();
    }, this.heartbeat);
  }

  // Any frame counts as an answer: a replay may be on its way before the pong.
  ping() {
    if (this.deadTimer !== null || !this.send({ type: 'ping' })) return;
    this.deadTimer = setTimeout(() => this.lost('no answer'), PONG_MS);
  }

  // The page is looked at again, or there is a network again. A socket may have died unseen.
  woken() {
    const away = this.hiddenAt === null ? STALE_MS : Date.now() - this.hiddenAt;
    this.hiddenAt = null;
    if (this.isOpen) {
      if (away >= STALE_MS) this.ping();
    } else if (this.generation > 0 && this.socket === null) {
      this.tries = 0;
      this.connect();
    }
  }
}

// What the record of who answered says; people know their devices by their system.
function pageName() {
  const system = /Android|iPhone|iPad|Windows|Mac|CrOS|Linux/.exec(navigator.userAgent)?.[0];
  return system ? `page on ${system}` : 'page';
}

function reason(code) {
  switch (code) {
    case 1001: return 'the server is stopping';
    case 1006: return ''; // it just broke off
    case 4000: return 'this device was too slow';
    case 4001: return 'no sign of life from this device';
    case 4500: return 'this device was logged out';
    default: return `closed (${code})`;
  }
}
