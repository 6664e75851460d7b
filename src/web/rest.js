// The server over HTTP. Knows its way of saying errors; not what is asked.

class Problem extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

// One call, by a path that is relative to the page; the answer's JSON, or a `Problem`.
export async function call(method, path, body) {
  let answer;
  try {
    answer = await fetch(new URL(path, document.baseURI), {
      method,
      headers: body === undefined ? {} : { 'Content-Type': 'application/json' },
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: 'same-origin',
      signal: AbortSignal.timeout(15000),
    });
  } catch {
    throw new Problem(0, 'UNREACHABLE', 'the server cannot be reached');
  }
  const text = await answer.text();
  let json = null;
  try {
    json = text ? JSON.parse(text) : null;
  } catch {
    // A proxy's own page, say: the status below has to do.
  }
  if (!answer.ok) {
    const error = json?.error ?? {};
    throw new Problem(answer.status, error.code ?? `HTTP_${answer.status}`,
      error.message ?? `HTTP status ${answer.status}`);
  }
  return json;
}
