// Runs a coroutine to its end, as the control thread would.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <exception>
#include <optional>
#include <utility>

namespace portway::test {

/// What else is ready in `context` runs meanwhile. `at_first_wait` is called once the coroutine waits, if it
/// does.
template <class Value, class Call>
Value run(boost::asio::io_context& context, boost::asio::awaitable<Value> what, const Call& at_first_wait) {
  std::optional<Value> result;
  std::exception_ptr failure;
  bool begun = false;
  bool done = false;
  boost::asio::co_spawn(
      context,
      [&]() -> boost::asio::awaitable<void> {
        begun = true;
        result.emplace(co_await std::move(what));
      },
      [&](std::exception_ptr thrown) {
        failure = std::move(thrown);
        done = true;
      });
  context.restart();
  while (!begun) context.run_one();  // until it waits, or has ended
  if (!result) at_first_wait();
  while (!done) context.run_one();
  if (failure) std::rethrow_exception(failure);
  return std::move(*result);
}

template <class Value>
Value run(boost::asio::io_context& context, boost::asio::awaitable<Value> what) {
  return run(context, std::move(what), [] {});
}

/// In a context that outlives whoever wakes the coroutine: that thread may be about to leave the call still.
template <class Value>
Value run(boost::asio::awaitable<Value> what) {
  static boost::asio::io_context context;
  return run(context, std::move(what));
}

}  // namespace portway::test
