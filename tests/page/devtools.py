"""Drives a browser over the DevTools protocol: JSON messages in a WebSocket (RFC 6455), with the standard library only."""

import base64
import http.client
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time

# A busy machine may take long; nothing here waits for longer than that.
TIMEOUT = 60
# The time to wait when something has failed already, so that the rest fails soon.
SHORT_TIMEOUT = 3


class Waiting:
    """How long `until` waits."""

    timeout = TIMEOUT


class Browser:
    """Chromium without a window. Ends with `close`."""

    def __init__(self, program):
        self.profile = tempfile.mkdtemp(prefix="page-browser-")
        arguments = ["--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--mute-audio"]
        arguments += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
        arguments += ["--remote-debugging-port=0", f"--user-data-dir={self.profile}", "--lang=en"]
        if os.geteuid() == 0:
            # Its sandbox does not work for root.
            arguments.append("--no-sandbox")
        self.log = open(os.path.join(self.profile, "log"), "w+b")
        self.process = subprocess.Popen(
            [program, *arguments, "about:blank"], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log
        )

    def start(self):
        """Waits until it can be driven."""
        self.port = until("the browser reports its port", self._find_port)

    def _find_port(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"the browser has exited: {self._text()[-500:]}")
        found = re.search(r"DevTools listening on ws://[^:]+:(\d+)/", self._text())
        return found and int(found[1])

    def _text(self):
        with open(self.log.name, encoding="utf-8", errors="replace") as log:
            return log.read()

    def open(self):
        """Returns a new tab."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        connection.request("PUT", "/json/new?about:blank")
        target = json.loads(connection.getresponse().read())
        connection.close()
        return Tab(target["webSocketDebuggerUrl"])

    def close(self):
        end(self.process)
        self.log.close()
        shutil.rmtree(self.profile, ignore_errors=True)


class Tab:
    """A tab. `errors` are those in its console, violations of the policy among them."""

    def __init__(self, url):
        address, path = re.fullmatch(r"ws://([^/]+)(/.*)", url).groups()
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), TIMEOUT)
        self.received = b""
        self.last = 0
        self.errors = []
        self._shake_hands(address, path)
        for domain in ["Page", "Runtime", "Log"]:
            self.call(f"{domain}.enable")

    def _shake_hands(self, address, path):
        key = base64.b64encode(os.urandom(16)).decode()
        request = [f"GET {path} HTTP/1.1", f"Host: {address}", "Upgrade: websocket", "Connection: Upgrade"]
        request += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]
        self.socket.sendall("\r\n".join(request).encode())
        while b"\r\n\r\n" not in self.received:
            self._receive()
        head, self.received = self.received.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise RuntimeError(f"no WebSocket: {head!r}")

    def _receive(self):
        more = self.socket.recv(1 << 16)
        if not more:
            raise RuntimeError("the browser has closed the connection")
        self.received += more

    def _take(self, length):
        while len(self.received) < length:
            self._receive()
        taken, self.received = self.received[:length], self.received[length:]
        return taken

    def _send(self, text):
        payload, mask = text.encode(), os.urandom(4)
        length = len(payload)
        if length < 126:
            head = struct.pack("!BB", 0x81, 0x80 | length)
        elif length < 1 << 16:
            head = struct.pack("!BBH", 0x81, 0xFE, length)
        else:
            head = struct.pack("!BBQ", 0x81, 0xFF, length)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
        self.socket.sendall(head + mask + masked)

    def _message(self):
        """Returns the next message; the browser may send it in several parts."""
        payload = b""
        while True:
            first, length = self._take(2)
            if length == 126:
                (length,) = struct.unpack("!H", self._take(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", self._take(8))
            part = self._take(length)
            if first & 0x0F in (0, 1):
                payload += part
                if first & 0x80:
                    return json.loads(payload)

    def call(self, method, **params):
        """Calls a method of the protocol, and returns its result."""
        self.last += 1
        self.socket.settimeout(Waiting.timeout)
        self._send(json.dumps({"id": self.last, "method": method, "params": params}))
        while True:
            message = self._message()
            if message.get("id") == self.last:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)

    def _note(self, message):
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{params['entry'].get('text')} {params['entry'].get('url', '')}")
        elif message.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.errors.append(str(params["args"]))

    def evaluate(self, expression):
        """Returns the value of an expression of JavaScript."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def until(self, what, expression):
        """Waits until an expression is true, and returns its value."""
        try:
            return until(what, lambda: self.evaluate(expression))
        except TimeoutError as error:
            raise TimeoutError(f"{error}; the page shows: {self.evaluate('document.body.innerText')[:2000]}") from None

    def visit(self, url):
        self.call("Page.navigate", url=url)

    def press(self, key):
        # Enter acts by its text.
        enter = {"windowsVirtualKeyCode": 13, "text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **enter)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def resize(self, width, height):
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=width < 600
        )

    def prefer(self, scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path):
        """Writes a picture of the whole page."""
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        with open(path, "wb") as file:
            file.write(base64.b64decode(picture["data"]))

    def close(self):
        self.socket.close()


def end(process):
    """Ends a process, at last by SIGKILL."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def until(what, attempt):
    """Waits for the first true value of `attempt`."""
    timeout, pause = Waiting.timeout, threading.Event()
    deadline = time.monotonic() + timeout
    while True:
        value = attempt()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout} s: {what}")
        pause.wait(0.05)
