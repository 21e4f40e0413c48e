'use strict';
// A cluster of Node.js, whose primary passes the connections on: server.js PORT.
const cluster = require('node:cluster');
const net = require('node:net');

function answer(socket, text) {
  const request = JSON.parse(text);
  if (request.in !== 'echo') return socket.destroy();
  const body = JSON.stringify({ out: 'pong', result: request.params });
  const length = Buffer.byteLength(body);
  const frame = Buffer.allocUnsafe(4 + length);
  frame.writeUInt32LE(length, 0);
  frame.write(body, 4, length, 'utf8');
  return frame;
}

cluster.schedulingPolicy = cluster.SCHED_RR;
if (cluster.isPrimary) {
  cluster.fork();
} else {
  const server = net.createServer({ noDelay: true }, (socket) => {
    let rest = null;
    socket.on('error', () => {});
    socket.on('data', (chunk) => {
      const received = rest === null ? chunk : Buffer.concat([rest, chunk]);
      const frames = [];
      let at = 0;
      while (received.length - at >= 4) {
        const end = at + 4 + received.readUInt32LE(at);
        if (end > received.length) break;
        const frame = answer(socket, received.toString('utf8', at + 4, end));
        if (!Buffer.isBuffer(frame)) return;
        frames.push(frame);
        at = end;
      }
      rest = at === received.length ? null : received.subarray(at);
      if (frames.length > 0) socket.write(frames.length === 1 ? frames[0] : Buffer.concat(frames));
    });
  });
  server.listen({ port: Number(process.argv[2]), host: '127.0.0.1', backlog: 4096 });
}
