"""Run a real HTTP server on this machine, with pages that a test makes."""
import contextlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """What the server answers for a path.

    Attributes:
        length: the Content-Length to send, if it is not that of the body.
        asked: set when somebody has asked for the page.
        may_answer: the answer waits until this is set.
    """

    body: bytes = b''
    length: int | None = None
    headers: dict = field(default_factory=dict)
    status: int = 200
    asked: threading.Event = field(default_factory=threading.Event)
    may_answer: threading.Event | None = None


class Server(ThreadingHTTPServer):
    """Serves `pages`, {path: Page}, and 404 for other paths.

    Keeps the paths of the GET requests in `requests`.
    """

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.pages, self.requests = {}, []
        self.address = f'http://127.0.0.1:{self.server_port}'


@contextlib.contextmanager
def running(server):
    """Let a Server answer in its own thread inside the block."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """Answers the requests to a Server."""

    def do_GET(self):
        self.server.requests.append(self.path)
        page = self.do_HEAD()
        if page:
            self.wfile.write(page.body)

    def do_HEAD(self):
        page = self.server.pages.get(self.path)
        if page is None:
            self.send_error(404)
            return None
        page.asked.set()
        if page.may_answer:
            page.may_answer.wait(60)
        self.send_response(page.status)
        length = len(page.body) if page.length is None else page.length
        self.send_header('Content-Length', str(length))
        for name, value in page.headers.items():
            self.send_header(name, value)
        self.end_headers()
        return page

    def log_message(self, *arguments):
        pass
