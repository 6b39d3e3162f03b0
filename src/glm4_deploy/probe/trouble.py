"""What can go wrong between the question and the answer, told apart so that each gets its own words."""

from enum import StrEnum


class Kind(StrEnum):
    UNREACHABLE = "unreachable"
    RESET = "reset"
    TLS = "tls"
    HANG = "hang"
    SLOW = "slow"
    TRUNCATED = "truncated"
    REDIRECT = "redirect"
    NOT_OPENAI = "not-openai"
    ENCODING = "encoding"
    TOO_BIG = "too-big"
    SERVER_ERROR = "server-error"


REMEDY = {
    Kind.UNREACHABLE: "start the engine, or give its address with --base-url; `glm4-deploy status` shows what runs",
    Kind.TLS: "give http:// where the server speaks no TLS; name a private authority with SSL_CERT_FILE",
    Kind.RESET: "read the engine's log: it died or a proxy cut the connection",
    Kind.HANG: "read the engine's log; restart it if its token counter stands still",
    Kind.SLOW: "look for other load on the engine; raise --timeout if this machine is known to be slow",
    Kind.TRUNCATED: "look for a proxy with a short read timeout; read the engine's log at this moment",
    Kind.REDIRECT: "give the final address with --base-url: redirects are not followed, so the key stays here",
    Kind.NOT_OPENAI: "another program answers at this address: give the engine's own with --base-url",
    Kind.ENCODING: "turn compression off in the proxy in front of the engine",
    Kind.TOO_BIG: "another program may answer at this address, or max_tokens is not obeyed",
    Kind.SERVER_ERROR: "read the engine's log: it names the cause above this error",
}


class Trouble(Exception):
    """No usable answer came. `partial` is what had arrived (untrusted text)."""

    def __init__(self, kind: Kind, detail: str, *, partial: str = "") -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail
        self.partial = partial

    @property
    def remedy(self) -> str:
        return REMEDY[self.kind]


class Refused(Exception):
    """The server answered with an error status: its own words, shortened."""

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status
        self.message = message
        self.param = param

    @property
    def not_offered(self) -> bool:
        """A status by which servers say that they do not know a feature (a 500 is a failure, never that)."""
        return self.status in {400, 404, 405, 422, 501}

    @property
    def not_a_number(self) -> bool:
        """vLLM's words when a logprob is NaN or infinite and so cannot be written as JSON."""
        return "out of range float values" in self.message.lower()
