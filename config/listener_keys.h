// The keys of one of the API's listeners, each said once: its name, its member and its rule. Their meanings
// are those of the keys of [api] (config/visit_keys.h). Used by config/ only.
#pragma once

#include <toml++/toml.h>

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"
#include "config/key_rules.h"

namespace portway {

inline constexpr std::string_view kListenKey = "api.listen";

/// Calls visit(name, member, rule) for each key of `listener`, which may be const.
template <class L, class Visit>
void visit_listener_keys(L& listener, Visit visit) {
  visit("address", listener.address, kListen);
  visit("tls_certificate", listener.tls_certificate, Own<Text<std::string>>{kOptionalPath});
  visit("tls_private_key", listener.tls_private_key, Own<Text<std::string>>{kOptionalPath});
  visit("client_ca", listener.client_ca, Own<Text<std::string>>{kOptionalPath});
  visit("allow_guests", listener.allow_guests, Own<Flag>{});
  visit("admin_uids", listener.admin_uids, Own<Uids>{{.max = 64}});
}

/// Of "api.listen[1]" or "api.listen[1].address": where it is said, and what is wrong there.
struct ListenerProblem {
  std::string key;
  std::string problem;
  toml::source_region source = {};
};

/// A list of addresses and tables. `found(key, source)` is told where each entry, and each key of one, is.
std::optional<ListenerProblem> read_listeners(
    const toml::array& entries, std::vector<ApiListener>& listeners,
    const std::function<void(const std::string&, const toml::source_region&)>& found);

/// Addresses separated by commas, as an override has them.
std::optional<ListenerProblem> read_listeners(std::string_view text, std::vector<ApiListener>& listeners);

}  // namespace portway
