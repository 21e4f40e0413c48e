export { App } from './app.js';
export { Fault } from './fault.js';
export { Raw } from './json.js';
