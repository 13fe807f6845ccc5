// The keys of the fleet in a KeyRing, beside those that were added to it otherwise: its own. None of the
// fleet's ever takes the place of an own one.
//
// Control thread.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "control/auth.h"

namespace portway {

class SharedKeys {
 public:
  /// How many are taken; those with the greatest ids are left out.
  static constexpr std::size_t kMax = 2 * kApiKeysMax;

  /// `ring` outlives it.
  explicit SharedKeys(KeyRing& ring) : ring_(ring) {}

  /// From now on the fleet has these. A key that it has no more is gone from the ring at once.
  void set(std::map<Uuid, ApiKey> keys);
  /// After the ring's own keys have changed.
  void apply();

  /// Why some of them are not valid here, for an operator; empty: all are.
  const std::string& fault() const { return fault_; }

 private:
  void remove_what_went(std::map<Uuid, Timestamp>& uses);
  std::string why_not(const ApiKey& key) const;

  KeyRing& ring_;
  std::map<Uuid, ApiKey> keys_;   // that the fleet has
  std::map<Uuid, ApiKey> added_;  // to the ring, as they were then
  std::string fault_;
};

}  // namespace portway
