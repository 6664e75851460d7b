// A page's place in one session's log: what it has seen, what to ask for, what to show.
//
// Pure: frames in, decisions out. An event is shown if and only if it is the one after the last
// one shown, so whatever is cut and replayed, nothing is lost and nothing comes twice.
// `src/cli/follow.rs` is the same in Rust, with the tests of the rules.

export class Follow {
  constructor(session) {
    this.session = session;
    this.cursor = null; // {run, seq}: the last event shown
    this.open = false; // the cursor's run has more to come: its `complete` was not seen
    this.epoch = null;
    this.passed = new Set(); // runs before the cursor's
    this.rewoundRun = null;
    this.subscribes = 0;
    this.subscribed = false;
    this.live = false;
    this.events = 0; // since the subscribe
    this.hole = null;
  }

  disconnected() {
    this.subscribed = false;
    this.live = false;
  }

  // The frame that asks for what is missing. Each call makes the ones before it void.
  subscribe() {
    this.subscribes += 1;
    this.disconnected();
    this.events = 0;
    const target = { sessionId: this.session };
    if (this.cursor) {
      target.runId = this.cursor.run;
      target.lastSeq = this.cursor.seq;
    } else if (this.rewoundRun) {
      target.runId = this.rewoundRun;
    } else {
      target.from = 'start';
    }
    const frame = { type: 'chat.subscribe', sessions: [target], ref: this.ref() };
    if (this.epoch) frame.logEpoch = this.epoch;
    return frame;
  }

  ref() {
    return `subscribe-${this.session}-${this.subscribes}`;
  }

  // What a frame means: {what: 'event' | 'repeat' | 'hole' | 'gap' | 'subscribed' | 'caught_up' |
  // 'refused' | 'other'}, with what belongs to it.
  take(frame) {
    if (frame.sessionId !== this.session) return { what: 'other' };
    // Only events name their provider and have a seq.
    if (typeof frame.provider === 'string' && typeof frame.runId === 'string'
        && typeof frame.seq === 'number') {
      return this.subscribed ? this.event(frame) : { what: 'repeat' };
    }
    switch (frame.kind) {
      case 'chat_subscribed':
        return frame.ref === this.ref() ? this.answer(frame) : { what: 'other' };
      case 'protocol_error':
        return frame.ref === this.ref()
          ? { what: 'refused', code: frame.code } : { what: 'other' };
      case 'session_deleted':
        return { what: 'refused', code: 'SESSION_NOT_FOUND' };
      case 'gap':
        if (!this.subscribed) return { what: 'repeat' };
        this.skip(frame.to);
        return { what: 'gap', from: frame.from, to: frame.to };
      case 'caught_up':
        return this.subscribed ? this.caughtUp(frame) : { what: 'repeat' };
      default:
        return { what: 'other' };
    }
  }

  answer(frame) {
    if (frame.error) return { what: 'refused', code: frame.error };
    this.subscribed = true;
    this.epoch = frame.logEpoch ?? this.epoch;
    const rewound = frame.rewound === true;
    if (rewound && this.cursor) {
      // The numbers that we know belong to a log that is no more.
      this.rewoundRun = this.cursor.run;
      this.cursor = null;
      this.open = false;
      this.hole = null;
    }
    if (frame.gap) this.skip(frame.gap.to);
    return {
      what: 'subscribed', rewound, gap: frame.gap ?? null,
      pending: frame.pendingPermissions ?? [], processing: frame.isProcessing === true,
      run: frame.runId ?? null,
    };
  }

  event(frame) {
    const { runId: run, seq } = frame;
    const at = this.cursor;
    let next;
    if (!at) next = seq === 0;
    else if (at.run === run) {
      if (seq <= at.seq) return { what: 'repeat' };
      next = seq === at.seq + 1;
    } else if (this.passed.has(run)) return { what: 'repeat' };
    else next = seq === 0 && !this.open;
    const place = `${run}:${seq}`;
    const lost = !next && this.hole === place;
    if (!next && !lost) {
      this.hole = place;
      this.subscribed = false; // what follows lies behind the hole
      return { what: 'hole' };
    }
    this.events += 1;
    this.hole = null;
    this.goTo(run, seq);
    this.open = frame.kind !== 'complete';
    return { what: 'event', lost };
  }

  goTo(run, seq) {
    if (this.cursor && this.cursor.run !== run) this.passed.add(this.cursor.run);
    this.cursor = { run, seq };
    this.open = false;
  }

  // Past what is gone; but never back, since what was shown was shown.
  skip(to) {
    if (!to || typeof to.runId !== 'string' || this.passed.has(to.runId)) return;
    if (this.cursor && this.cursor.run === to.runId && this.cursor.seq >= to.seq) return;
    this.goTo(to.runId, to.seq);
  }

  caughtUp(frame) {
    const at = this.cursor;
    const place = `${frame.runId}:${frame.seq}`;
    if (at && at.run === frame.runId && at.seq < frame.seq && this.hole !== place) {
      this.hole = place;
      this.subscribed = false;
      return { what: 'hole' };
    }
    this.live = true;
    return { what: 'caught_up', events: this.events };
  }
}
