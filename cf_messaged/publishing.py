"""What has become the latest goes to who has subscribed: what there is to who has just come, then what is new."""

from __future__ import annotations

import logging
import time
from collections.abc import Container

from cf_messaged.codec import encode_event
from cf_messaged.complaints import Complaints
from cf_messaged.database import StoreUnavailable
from cf_messaged.guard import Guard
from cf_messaged.metrics import Metrics
from cf_messaged.publisher import Publisher, topic_of
from cf_messaged.sockets import Socket, send
from cf_messaged.store import Store
from cf_messaged.subscribers import Subscribers


class Publishing:
    def __init__(self, socket: Socket | None, store: Store, guard: Guard | None, metrics: Metrics) -> None:
        """socket: without one nothing is published. guard: without one, all may hear everything."""
        self._socket, self._store, self._metrics = socket, store, metrics
        self._publisher = Publisher()
        self._subscribers = socket and Subscribers(socket, self._publisher, guard, metrics.counters)
        self._troubles = Complaints()

    def poll_s(self, now_s: float) -> float | None:
        """After how long something is to be said again."""
        return self._publisher.poll_s(now_s)

    def hear(self, ready: Container[object]) -> None:
        """What subscribers have said. ready: what was polled."""
        if self._subscribers and self._socket in ready:
            self._subscribers.hear()
            self._metrics.subscriptions.set(self._publisher.subscriptions)

    def check(self) -> None:
        """To be called when other keys are let in, or under other names."""
        if self._subscribers:
            self._subscribers.check()

    def hang_up(self) -> None:
        """To be called when subscribers have other rights."""
        if self._subscribers:
            self._subscribers.hang_up()

    def resend(self) -> None:
        """Before anything is stored: what is sent here is as new as what was published."""
        try:
            for value in self._publisher.resend(time.monotonic(), self._store.last):
                self._publish(value.topic, value.frame)
        except StoreUnavailable as error:
            self._cannot(error)

    def publish_news(self) -> None:
        try:
            for event in self._store.news(self._publisher.subscriptions > 0):
                topic = topic_of(event.kind, event.name, event.node)
                if self._publisher.wants(topic):
                    self._publish(topic, encode_event(event))
        except StoreUnavailable as error:
            self._cannot(error)

    def _cannot(self, error: StoreUnavailable) -> None:
        """It is tried again many times a second."""
        self._troubles.say("", f"nothing can be published: {error}", logging.ERROR)

    def _publish(self, topic: bytes, event: bytes) -> None:
        """A subscriber that does not read loses it, and gets the last values when it comes again."""
        if self._socket is not None:
            send(self._socket, [topic, event])
            self._metrics.counters.published += 1
