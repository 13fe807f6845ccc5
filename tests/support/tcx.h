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

/// Another program's: counts the packets and passes them to the next one.
class ForeignTcx {
 public:
  enum class Place { kFirst, kLast };

  /// If the kernel takes no more on this link, is_attached() is false.
  ForeignTcx(const NetworkNamespace& network, const std::string& link, Place place = Place::kLast);

  bool is_attached() const { return static_cast<bool>(attached_); }
  std::uint64_t packets() const;

 private:
  Fd count_;
  Fd program_;
  Fd attached_;
};

/// Takes all the kernel's places for such programs on a link: only filters are left, as before Linux 6.6.
std::vector<ForeignTcx> take_all_tcx(const NetworkNamespace& network, const std::string& link);

}  // namespace portway::test
