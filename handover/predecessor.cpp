#include "handover/predecessor.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

namespace portway {
namespace {

constexpr std::chrono::seconds kPatience(5);

}  // namespace

Result<std::unique_ptr<Predecessor>> Predecessor::find(const std::string& path) {
  int error = 0;
  Fd keeper = connect_to_keeper(path, error);
  if (!keeper) return std::unique_ptr<Predecessor>();
  if (user_of_peer(keeper.get()) != ::geteuid()) {
    return Error{ErrorCode::kInternal, fmt::format("{} is another user's: remove it.", path)};
  }
  auto estate = receive_estate(keeper.get(), kPatience, error);
  if (estate) {
    return std::unique_ptr<Predecessor>(new Predecessor(path, std::move(keeper), std::move(*estate)));
  }
  const std::string what = std::system_category().message(error);
  if (error == EMFILE || error == ENFILE) {
    return Error{ErrorCode::kResourceExhausted,
                 fmt::format("The connections of the daemon that has died do not fit into the limit of "
                             "descriptors: {}. Raise it (LimitNOFILE=).",
                             what)};
  }
  return Error{
      ErrorCode::kInternal,
      fmt::format("The keeper of the daemon that has died does not hand over at {}: {}.", path, what)};
}

Result<std::unique_ptr<Predecessor>> Predecessor::await(const std::string& path) {
  auto predecessor = find(path);
  if (predecessor && *predecessor == nullptr) {
    return Error{ErrorCode::kInternal,
                 fmt::format("No daemon hands over at {}: --take-over is for its upgrade (SIGUSR2).", path)};
  }
  return predecessor;
}

bool Predecessor::take() {
  const MappedControl control(estate_.control);
  if (!control) return false;
  control->taken.store(1);
  ::unlink(path_.c_str());
  return true;
}

}  // namespace portway
