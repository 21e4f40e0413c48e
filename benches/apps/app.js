// An app of fdpassd in Node.js.
import { App } from '../../sdk/node/lib/index.js';

new App().method('echo', { reply: 'pong' }, (params) => params).run();
