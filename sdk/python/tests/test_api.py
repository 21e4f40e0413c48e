"""Mistakes in an app are found when it is written."""

from __future__ import annotations

import doctest
import json
import os
import shlex
import subprocess
import sys
import unittest
from decimal import Decimal
from fractions import Fraction
from typing import Any

import fdpassd
from fdpassd import App, Fault

from .worker import SOURCES, TIMEOUT


class Api(unittest.TestCase):
    def test_a_method_stays_a_function(self) -> None:
        app = App()

        @app.method
        def double(n: int) -> int:
            return 2 * n

        @app.method(idempotent=True)
        def triple(n: int) -> int:
            return 3 * n

        self.assertEqual((double(2), triple(2)), (4, 6))

    def test_wrong_names_are_refused(self) -> None:
        app = App()

        def function() -> None: ...

        for name in ("Ping", "", "9a", "error", "a b", "x" * 65):
            with self.assertRaisesRegex(ValueError, "not a valid name"):
                app.method(name=name)(function)
            with self.assertRaisesRegex(ValueError, "not a valid name"):
                app.method(reply=name)(function)
        for name in ("ping", "methods"):
            with self.assertRaisesRegex(ValueError, "daemon's own"):
                app.method(name=name)(function)
        app.method(function)
        with self.assertRaisesRegex(ValueError, "duplicate method 'function'"):
            app.method(function)

    def test_functions_without_one_result_are_refused(self) -> None:
        app = App()

        def generator() -> Any:
            yield 1

        async def coroutine() -> None: ...

        def mixed(a: int, /, b: int) -> None: ...

        with self.assertRaisesRegex(TypeError, "generator"):
            app.method(generator)
        with self.assertRaisesRegex(TypeError, "in the loop"):
            app.method(thread=True)(coroutine)
        with self.assertRaisesRegex(TypeError, "positional-only"):
            app.method(mixed)

    def test_a_fault_has_a_valid_code_that_is_not_the_daemons(self) -> None:
        fault = Fault("no_such_item", "there is no tea")
        self.assertEqual((fault.code, fault.message, str(fault)), ("no_such_item", "there is no tea", "no_such_item: there is no tea"))
        for code in ("bad_params", "internal", "crashed"):
            Fault(code)
        for code in ("timeout", "overloaded", "No", "", "a-b"):
            with self.assertRaises(ValueError):
                Fault(code)

    def test_metrics_are_declared_once_and_only_grow(self) -> None:
        app = App()
        counter = app.counter("orders", "Orders")
        with self.assertRaisesRegex(ValueError, "duplicate metric"):
            app.histogram("orders", "Orders", [1])
        for name in ("Orders", "a-b", ""):
            with self.assertRaisesRegex(ValueError, "not a valid name"):
                app.counter(name, "")
        for number in (-1, float("nan"), float("inf")):
            with self.assertRaisesRegex(ValueError, "cannot grow"):
                counter.add(number)
        for buckets in ([], [1, 1], [2, 1]):
            with self.assertRaisesRegex(ValueError, "buckets"):
                app.histogram("seconds", "", buckets)
        histogram = app.histogram("seconds", "", [0.1, 1])
        with histogram.time():
            pass
        counter.add(2)
        counter.add(1)
        (new,) = app._metrics.take()
        self.assertEqual((new["orders"], len(new["seconds"])), (3, 1))
        self.assertEqual(app._metrics.take(), [])

    def test_numbers_of_any_class_are_counted_as_json_has_them(self) -> None:
        class Scalar:
            def __float__(self) -> float:
                return 4.0

        app = App()
        buckets: list[Any] = [Fraction(1, 2), Decimal(2)]
        counter, seconds = app.counter("orders", ""), app.histogram("seconds", "", buckets)
        several: list[Any] = [Decimal("2"), Fraction(6, 2), True, 5.0, Scalar(), 1 << 50]
        for number in several:
            counter.add(number)
            seconds.observe(number)
        (new,) = app._metrics.take()
        self.assertEqual(json.dumps(new["orders"]), str(2 + 3 + 1 + 5 + 4 + (1 << 50)))
        self.assertEqual(json.dumps(new["seconds"]), "[2.0, 3.0, 1.0, 5.0, 4.0, 1125899906842624.0]")
        self.assertEqual(json.dumps(app._metrics.declared[1]["buckets"]), "[0.5, 2.0]")
        wrong: list[Any] = [0.5, Fraction(1, 2), 10**400, (1 << 53) + 2, 1e308, Decimal("NaN")]
        for number in wrong:
            with self.assertRaises(ValueError):
                counter.add(number)
        for text in ("5", b"5", None, [5]):
            with self.assertRaises(TypeError):
                counter.add(text)  # type: ignore[arg-type]
            with self.assertRaises(TypeError):
                seconds.observe(text)  # type: ignore[arg-type]
        with self.assertRaises(ValueError):
            seconds.observe(10**400)
        self.assertEqual(app._metrics.take(), [])

    def test_a_call_belongs_to_a_method(self) -> None:
        with self.assertRaisesRegex(RuntimeError, "for methods"):
            fdpassd.call()

    def test_concurrency_has_bounds(self) -> None:
        for concurrency in (0, 4097):
            with self.assertRaisesRegex(ValueError, "from 1 to 4096"):
                App(concurrency=concurrency)

    def test_run_by_hand_it_says_how_to_start_it(self) -> None:
        code = "from fdpassd import App\nApp().run()"
        environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
        environment.pop("FDPASSD_APP", None)
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=TIMEOUT
        )
        self.assertEqual(done.returncode, 64)
        start = shlex.join(done.args)
        self.assertEqual(done.stderr, f"start this app with: fdpassd app -- {start}\n")

    def test_the_examples_of_the_documentation_work(self) -> None:
        self.assertEqual(doctest.testmod(fdpassd).failed, 0)
