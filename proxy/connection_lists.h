// The lists that a connection is in, besides the run queue: those of its forward. Intrusive, so that a
// connection enters and leaves them in constant time and without an allocation.
//
// They hold the parts that a Connection derives from (proxy/connection.h); connection_of() leads back.
#pragma once

#include <boost/intrusive/list.hpp>
#include <chrono>

namespace portway {

struct InForward : boost::intrusive::list_base_hook<> {};
using ConnectionList = boost::intrusive::list<InForward>;

/// One side has sent FIN, the other has not. See HalfClosed.
struct InHalfClosed : boost::intrusive::list_base_hook<> {
  std::chrono::nanoseconds seen{0};  // when it entered the list, or moved to its end
};
using HalfClosedList = boost::intrusive::list<InHalfClosed>;

}  // namespace portway
