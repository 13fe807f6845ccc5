#include "daemon/privileges/sandbox.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>

#include <cerrno>
#include <string>
#include <variant>
#include <vector>

#include "config/config_files.h"
#include "daemon/privileges/landlock.h"
#include "network/namespace.h"

namespace portway {
namespace {

#ifdef PORTWAY_SANITIZED
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

/// Every file that the thread writes after its start is in one of these. A directory that is deleted and made
/// again is another one: nothing can be written there until a restart.
std::vector<std::string> directories_to_write(const Config& config, ConfinedThread thread) {
  if (thread == ConfinedThread::kWorker) return {};
  std::vector<std::string> all = {nearest_directory(config.store.path),
                                  nearest_directory(config.api.admin_key_file)};
  for (const auto& [key, log] : log_files(config)) all.push_back(nearest_directory(log));
  std::vector<ListenAddress> listeners;
  for (const ApiListener& listener : config.api.listen) listeners.push_back(listener.address);
  if (config.metrics.listen) listeners.push_back(*config.metrics.listen);
  for (const ListenAddress& listener : listeners) {
    if (const auto* path = std::get_if<UnixPath>(&listener)) all.push_back(nearest_directory(path->path));
  }
  return all;
}

}  // namespace

void prepare_sandbox(UnconfinedThread& unconfined) {
  NetworkNamespace::open_processes_by([&unconfined](const std::string& path) {
    int file = 0;
    unconfined.run_and_wait([&] {
      file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
      if (file < 0) file = -errno;
    });
    return file;
  });
}

void enter_sandbox(const Config& config, ConfinedThread thread) {
  if (kSanitized || !config.process.sandbox) return;
  // The store's thread makes the store's directory again if it is deleted (control/store_files.h), and
  // handles what the control thread has checked.
  const bool may_write = thread == ConfinedThread::kStore;
  const auto restricted = may_write ? Result<void>() : restrict_writing(directories_to_write(config, thread));
  if (!restricted) spdlog::warn("{}", restricted.error().detail);
  if (const auto confined = confine_this_thread(thread); !confined)
    spdlog::warn("{}", confined.error().detail);
}

void log_refused_calls() {
  for (const RefusedCall& call : take_refused_calls()) {
    spdlog::error(
        "seccomp: {} was refused {}(2): a fault of Portway or an attack; report it. If it is a fault, "
        "process.sandbox = false allows the call until it is corrected",
        to_string(call.thread), call.name);
  }
}

}  // namespace portway
