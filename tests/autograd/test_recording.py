"""no_grad: for whom it holds, and for whom it does not, while frames wait for one another."""

import asyncio
import contextlib
import threading

import numpy as np
import pytest

import minilora as ml

X = ml.Tensor(np.ones(3), requires_grad=True)


def records():
    """Whether a primitive records here and now."""
    return (X * 2).requires_grad


def quiet_numbers(results):
    """A generator that waits inside no_grad."""
    with ml.no_grad():
        for i in range(3):
            results.append(records())
            yield i


def test_it_can_be_nested_and_reused():
    quiet = ml.no_grad()
    with quiet:
        with quiet:
            assert not records()
        assert not records()
    assert records()
    with pytest.raises(KeyError), ml.no_grad():
        raise KeyError
    assert records()


def test_it_holds_for_its_thread_alone():
    inside, done, seen = threading.Event(), threading.Event(), []

    def quietly():
        with ml.no_grad():
            inside.set()
            done.wait(10)
            seen.append(records())

    thread = threading.Thread(target=quietly)
    thread.start()
    assert inside.wait(10)
    seen.append(records())
    done.set()
    thread.join()
    assert seen == [True, False]


def test_a_suspended_generator_does_not_hold_it_for_its_caller():
    inside, outside = [], []
    for _ in quiet_numbers(inside):
        outside.append(records())
    assert inside == [False] * 3 and outside == [True] * 3
    left = quiet_numbers(inside)
    next(left)
    with ml.no_grad():  # two blocks, one of them asleep
        assert not records()
        assert next(left) == 1
    assert records() and inside[-2:] == [False, False]
    left.close()
    assert records()


def test_a_generator_that_ends_in_another_thread():
    inside = []
    numbers = quiet_numbers(inside)
    next(numbers)
    thread = threading.Thread(target=numbers.close)
    thread.start()
    thread.join()
    assert records()
    with ml.no_grad():
        assert not records()
    assert records()


def test_what_has_ended_in_another_thread_is_forgotten():
    """Nothing is left to ask about, on every primitive, and no frame is kept."""
    from minilora.autograd.recording import blocks

    numbers = quiet_numbers([])
    next(numbers)
    assert len(blocks.get()) == 1
    thread = threading.Thread(target=numbers.close)
    thread.start()
    thread.join()
    with ml.no_grad():
        assert len(blocks.get()) == 1
    assert blocks.get() == ()


def test_a_generator_delegates_to_another():
    def outer(results):
        with ml.no_grad():
            yield from inner(results)

    def inner(results):
        results.append(records())
        yield 1
        results.append(records())

    inside = []
    assert [records() for _ in outer(inside)] == [True] and inside == [False, False]


def test_a_context_manager_of_a_generator_holds_it_for_its_block():
    @contextlib.contextmanager
    def quietly():
        with ml.no_grad():
            yield

    @contextlib.contextmanager
    def through_another():
        yield from quiet_once()

    def quiet_once():
        with ml.no_grad():
            yield

    for manager in (quietly, through_another):
        with manager():
            assert not records()
        assert records()
    with contextlib.ExitStack() as stack:
        stack.enter_context(ml.no_grad())
        stack.enter_context(quietly())
        assert not records()
    assert records()


def test_other_asyncio_tasks_go_on_recording():
    async def quietly():
        with ml.no_grad():
            await asyncio.sleep(0.01)
            first = records()
            await asyncio.sleep(0.01)
            return first, records()

    async def loudly():
        seen = []
        for _ in range(3):
            await asyncio.sleep(0.005)
            seen.append(records())
        return seen

    async def both():
        return await asyncio.gather(quietly(), loudly(), quietly(), loudly())

    assert asyncio.run(both()) == [(False, False), [True] * 3, (False, False), [True] * 3]
    assert records()


def test_what_a_task_awaits_is_inside_as_well():
    async def inner():
        await asyncio.sleep(0)
        return records()

    async def outer():
        with ml.no_grad():
            return await inner(), records()

    async def main():
        return await outer(), records()

    assert asyncio.run(main()) == ((False, False), True)


def test_asynchronous_generators_and_managers():
    async def numbers(results):
        with ml.no_grad():
            for i in range(2):
                results.append(records())
                yield i

    @contextlib.asynccontextmanager
    async def quietly():
        with ml.no_grad():
            yield

    async def main():
        inside, outside = [], []
        async for _ in numbers(inside):
            outside.append(records())
        async with quietly():
            outside.append(records())
        return inside, [*outside, records()]

    assert asyncio.run(main()) == ([False, False], [True, True, False, True])


@pytest.mark.parametrize("decorate", [ml.no_grad(), ml.no_grad], ids=["no_grad()", "no_grad"])
def test_as_a_decorator(decorate):
    @decorate
    def double(x, *, times=2):
        """Its words."""
        return x * times, records()

    assert double.__name__ == "double" and double.__doc__ == "Its words."
    y, inside = double(X, times=3)
    assert not y.requires_grad and not inside and records()

    @decorate
    def numbers():
        sent = yield records()
        yield sent, records()
        return "end"

    generator = numbers()
    assert next(generator) is False and records()
    assert generator.send(5) == (5, False) and records()
    with pytest.raises(StopIteration) as stopped:
        next(generator)
    assert stopped.value.value == "end" and records()

    @decorate
    async def later():
        await asyncio.sleep(0)
        return records()

    @decorate
    async def several():
        for _ in range(2):
            yield records()

    async def main():
        return await later(), [(value, records()) async for value in several()], records()

    assert asyncio.run(main()) == (False, [(False, True), (False, True)], True)


def test_a_decorated_function_that_fails_or_calls_itself():
    @ml.no_grad()
    def countdown(n):
        if n == 0:
            raise KeyError(n)
        assert not records()
        return countdown(n - 1)

    with pytest.raises(KeyError):
        countdown(5)
    assert records()


@pytest.mark.parametrize("wrong", [3, "f", ml.Tensor])
def test_what_is_no_function_is_refused(wrong):
    with pytest.raises(TypeError, match=r"^no_grad: got .*, expected a function to decorate, or `with no_grad\(\):`"):
        ml.no_grad()(wrong)
