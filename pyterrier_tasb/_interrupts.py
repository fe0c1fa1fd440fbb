"""Ctrl-C ends a call with `KeyboardInterrupt`, also after Java has started."""
import signal
import threading


def take_ctrl_c() -> None:
    """Put Python's own handler of SIGINT back: a Java machine takes its place and ends the process, or crashes it.

    What `signal.getsignal` says is what there is afterwards. Signals are the main thread's, others change nothing.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)
