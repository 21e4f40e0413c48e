// The stream of updates: server-sent events over fetch(), because EventSource does not report why it was refused.

// The time after which a stream without an event is taken for dead: an update comes each second.
const SILENCE = 10_000;
// The wait before the next try to connect, which doubles up to the longest.
const RETRY = 1_000;
const MAX_RETRY = 10_000;
// The time after which a page that is not visible ends its stream.
const HIDDEN = 30_000;

// Why a stream has ended, as a sentence for people.
class StreamEnd extends Error {}

// The server's sentence for a stream that it does not open.
class Refusal extends StreamEnd {}

// Follows the stream for ever, and connects again when it ends: with a reload, a restart or an upgrade of the daemon.
async function follow(handlers) {
    for (let wait = RETRY; ; wait = Math.min(2 * wait, MAX_RETRY)) {
        await untilVisible();
        try {
            await readStream(handlers, () => (wait = RETRY));
        } catch (error) {
            if (error instanceof Refusal) wait = MAX_RETRY;
            // Any other error is one of this script.
            if (!(error instanceof StreamEnd)) console.error(error);
            handlers.lost(error instanceof StreamEnd ? error.message : `an error of this page: ${error}`);
        }
        // Pages that have lost their streams together connect one after the other.
        await new Promise((resolve) => setTimeout(resolve, wait * (0.5 + Math.random() / 2)));
    }
}

// Waits until the page is visible.
async function untilVisible() {
    while (document.hidden) {
        await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
    }
}

// Passes the events of a stream to the handlers, until it ends, which is an error.
async function readStream(handlers, received) {
    const abort = new AbortController();
    const end = (sentence) => abort.abort(new StreamEnd(sentence));
    const watchSilence = () => setTimeout(() => end("the stream was silent for 10 s; connecting again"), SILENCE);
    let silence = watchSilence();
    let hidden;
    const watchVisibility = () => {
        clearTimeout(hidden);
        if (document.hidden) hidden = setTimeout(() => end("not updated while this page is hidden"), HIDDEN);
    };
    document.addEventListener("visibilitychange", watchVisibility);
    try {
        const events = eventsOf(await openStream(abort.signal));
        for (;;) {
            const { value, done } = await transport(events.next(), abort.signal);
            if (done) throw new StreamEnd("the stream has ended; connecting again");
            clearTimeout(silence);
            silence = watchSilence();
            handlers[value.name]?.(JSON.parse(value.data));
            received();
        }
    } finally {
        document.removeEventListener("visibilitychange", watchVisibility);
        clearTimeout(silence);
        clearTimeout(hidden);
        abort.abort();
    }
}

// Opens the stream. A page of another origin cannot send this field without asking first.
async function openStream(signal) {
    const headers = { "Fdpassd-Page": "1" };
    const reply = await transport(fetch("live", { cache: "no-store", headers, signal }), signal);
    if (reply.ok) return reply.body;
    // A proxy may send a page of its own.
    const isSentence = reply.headers.get("Content-Type")?.startsWith("text/plain");
    const sentence = isSentence ? await transport(reply.text(), signal) : "";
    throw new Refusal(sentence.trim().split("\n")[0].slice(0, 200) || `the reply has the status ${reply.status}`);
}

// Waits for the network. Its errors are the end of the stream, for the reason of the signal if it has one.
async function transport(promise, signal) {
    try {
        return await promise;
    } catch {
        throw signal.aborted ? signal.reason : new StreamEnd("no connection; trying again");
    }
}

// Yields the events of a stream. Each is a line with its name, a line with JSON, and an empty line.
async function* eventsOf(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        text += value;
        const blocks = text.split("\n\n");
        text = blocks.pop();
        for (const block of blocks) {
            const [name, data] = block.split("\n").map((line) => line.slice(line.indexOf(": ") + 2));
            yield { name, data };
        }
    }
}
