"""An HTTP proxy on loopback that fails on command: it passes on, answers errors, or hangs."""

import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FaultyProxy:
    """In front of a server's port; `mode` is "pass", "hang", or the status that it answers."""

    def __init__(self, port):
        self.target, self.mode, self.failed = port, "pass", 0
        self.before_reply = lambda method, path: None
        self.dropped_headers, self.refused_methods = (), ()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.mode = "pass"
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail_for(self, seconds, mode):
        """Be out of order for a while."""
        self.mode = mode
        timer = threading.Timer(seconds, self.__setattr__, ("mode", "pass"))
        timer.start()
        return timer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass_on(self):
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        mode = 403 if self.command in proxy.refused_methods else proxy.mode
        if mode == "pass":
            self._forward(proxy, body)
            return
        proxy.failed += 1
        if mode == "hang":
            while proxy.mode == "hang":
                time.sleep(0.05)
            self.close_connection = True
            return
        self._answer(mode, {}, b"<Error><Code>SlowDown</Code></Error>")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def _forward(self, proxy, body):
        kept = {n: v for n, v in self.headers.items() if n.lower() not in proxy.dropped_headers}
        line = http.client.HTTPConnection("127.0.0.1", proxy.target, timeout=60)
        line.request(self.command, self.path, body, kept)
        reply = line.getresponse()
        data, headers = reply.read(), dict(reply.getheaders())
        line.close()
        if proxy.before_reply(self.command, self.path) == "lose":
            self.close_connection = True
            return
        self._answer(reply.status, headers, data)

    def _answer(self, status, headers, data):
        is_head = self.command == "HEAD"
        length = headers.get("Content-Length", 0) if is_head else len(data)
        dropped = ("connection", "content-length", "transfer-encoding", "server", "date")
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in dropped:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if not is_head:
            self.wfile.write(data)

    def log_message(self, *_):
        pass
