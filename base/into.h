// How a coroutine waits for an Asio operation: errors are values, nothing is thrown.
#pragma once

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/system/error_code.hpp>

namespace portway {

/// `co_await socket.async_wait(..., into(error))`
inline auto into(boost::system::error_code& error) {
  return boost::asio::redirect_error(boost::asio::use_awaitable, error);
}

}  // namespace portway
