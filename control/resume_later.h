// Lets a coroutine wait for something that another thread, or another coroutine, will do.
#pragma once

#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <functional>
#include <memory>
#include <utility>

namespace portway {

/// What wakes the coroutine. To be called once, on any thread.
template <class Value>
using Resume = std::function<void(Value)>;

/// Calls `start` with a Resume, and waits until that is called with the result. The coroutine continues on
/// its own executor, after what is due there already.
template <class Value>
boost::asio::awaitable<Value> resume_later(std::function<void(Resume<Value>)> start) {
  namespace asio = boost::asio;
  const auto executor = co_await asio::this_coro::executor;
  auto initiate = [&start, &executor](auto handler) {
    // std::function wants to be copied; an awaiting coroutine cannot be.
    auto waiting = std::make_shared<decltype(handler)>(std::move(handler));
    start(Resume<Value>([executor, waiting = std::move(waiting)](Value value) {
      asio::post(executor, [waiting, value = std::move(value)]() mutable {
        auto resume = std::move(*waiting);
        resume(std::move(value));
      });
    }));
  };
  co_return co_await asio::async_initiate<const asio::use_awaitable_t<>&, void(Value)>(initiate,
                                                                                       asio::use_awaitable);
}

}  // namespace portway
