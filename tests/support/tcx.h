// Programs at the ingress of a link that are attached by tcx (Linux 6.6), which tc(8) does not list. Needs
// root and Linux 6.6. Failures throw std::system_error.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/fd.h"
#include "tests/support/network.h"

namespace portway::test {

/// Their names, in order.
std::vector<std::string> tcx_programs(const NetworkNamespace& network, const std::string& link);

/// A program of somebody else's: counts the packets and leaves them to the next one.
class ForeignTcx {
 public:
  enum class Place { kFirst, kLast };

  /// Where the kernel takes no more on this link, is_attached() is false.
  ForeignTcx(const NetworkNamespace& network, const std::string& link, Place place = Place::kLast);

  bool is_attached() const { return static_cast<bool>(attached_); }
  std::uint64_t packets() const;

 private:
  Fd count_;
  Fd program_;
  Fd attached_;
};

/// All the places that the kernel has for such programs on a link: filters are what is left, as before Linux
/// 6.6.
std::vector<ForeignTcx> take_all_tcx(const NetworkNamespace& network, const std::string& link);

}  // namespace portway::test
