// A change that is on disk once it is done: a coroutine of the control thread. While it waits for the disk,
// the thread does what else is due, other changes included. So the rule for its author: **what was true
// before a co_await may not be true after it.** Look again; pointers into the registry do not survive it.
//
// Like every coroutine of Asio it begins when it is awaited: one that nobody awaits does nothing.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <functional>

#include "base/error.h"

namespace portway {

template <class Value>
using Change = boost::asio::awaitable<Result<Value>>;

/// What a caller requires of a thing as it is when the change's turn comes, and the error if it is otherwise.
/// nullptr: there is none. Null: nothing is required.
template <class Thing>
using Precondition = std::function<Result<void>(const Thing* current)>;

template <class Thing>
Result<void> require(const Precondition<Thing>& precondition, const Thing* current) {
  return precondition ? precondition(current) : Result<void>();
}

}  // namespace portway
