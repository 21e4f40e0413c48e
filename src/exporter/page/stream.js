// The stream of updates: server-sent events over fetch(), because EventSource does not report why it was refused.

// The time after which a stream without an event is taken for dead: an update comes each second.
const SILENCE = 10_000;
const RETRY = 1_000;
const RETRY_REFUSED = 10_000;

// Follows the stream for ever, and connects again when it ends: with a reload, a restart or an upgrade of the daemon.
async function follow(handlers) {
    for (;;) {
        let wait = RETRY;
        try {
            await readStream(handlers);
            handlers.lost("the stream has ended; connecting again");
        } catch (error) {
            if (error instanceof Refusal) wait = RETRY_REFUSED;
            handlers.lost(error instanceof Refusal ? error.message : "no connection; trying again");
        }
        await new Promise((resolve) => setTimeout(resolve, wait));
    }
}

// The server's sentence for a stream that it does not open.
class Refusal extends Error {}

async function readStream(handlers) {
    const abort = new AbortController();
    let timer = setTimeout(() => abort.abort(), SILENCE);
    try {
        const reply = await fetch("live", { cache: "no-store", signal: abort.signal });
        if (!reply.ok) throw new Refusal((await reply.text()).trim());
        for await (const { name, data } of eventsOf(reply.body)) {
            clearTimeout(timer);
            timer = setTimeout(() => abort.abort(), SILENCE);
            handlers[name]?.(data);
        }
    } finally {
        clearTimeout(timer);
        abort.abort();
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
            yield { name, data: JSON.parse(data) };
        }
    }
}
