// The types and the package file, as users get them.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import { here } from './worker.js';

const run = (command, args, options) => spawnSync(command, args, { encoding: 'utf8', ...options });
const isThere = (command) => run(command, ['--version']).status === 0;

test('the types match their use', (t) => {
  const tsc = [process.env.TSC, here('../node_modules/.bin/tsc'), 'tsc'].find((path) => path && isThere(path));
  if (!tsc) return t.skip('needs tsc: npm install, or TSC=PATH');
  const { status, stdout } = run(tsc, ['--project', 'tsconfig.json'], { cwd: here('.') });
  assert.equal(status, 0, stdout);
});

test('npm pack makes a package that can be imported', (t) => {
  if (!isThere('npm')) return t.skip('needs npm');
  const directory = mkdtempSync(join(tmpdir(), 'fdpassd-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const packed = run('npm', ['pack', '--offline', '--pack-destination', directory], { cwd: here('..') });
  assert.equal(packed.status, 0, packed.stderr);
  const [file] = readdirSync(directory);
  assert.equal(file, 'fdpassd-0.1.0.tgz');
  assert.equal(run('tar', ['-xzf', file], { cwd: directory }).status, 0);
  for (const path of ['LICENSE-MIT', 'LICENSE-APACHE', 'README.md', 'lib/index.d.ts', 'examples/shop.js']) {
    assert.ok(existsSync(join(directory, 'package', path)), path);
  }
  assert.ok(!existsSync(join(directory, 'package', 'test')));
  // The package finds itself by its name.
  const script = "import('fdpassd').then((m) => console.log(Object.keys(m).join()))";
  const imported = run(process.execPath, ['-e', script], { cwd: join(directory, 'package') });
  assert.equal(imported.stdout, 'App,Fault,Raw\n', imported.stderr);
});
