#include "proxy/pipe_pool.h"

namespace portway {

PipePool::~PipePool() {
  for (const Pipe& pipe : idle_) close(pipe);
}

bool PipePool::reserve() {
  if (!idle_.empty()) return true;
  int fds[2];
  const int size = open_ < pipes_max_ ? io_.pipe(fds, kPipeSize) : -EMFILE;
  if (size < 0) {
    counters_.pipes_exhausted.add();
    return false;
  }
  ++open_;
  counters_.pipes_open.add();
  // Beyond fs.pipe-user-pages-soft an unprivileged user's pipes shrink to two pages.
  if (static_cast<std::uint32_t>(size) < kPipeSize) counters_.pipes_clamped.add();
  idle_.push_back({fds[0], fds[1], static_cast<std::uint32_t>(size)});
  return true;
}

std::optional<Pipe> PipePool::take() {
  if (!reserve()) return std::nullopt;
  const Pipe pipe = idle_.back();
  idle_.pop_back();
  counters_.pipes_in_use.add();
  return pipe;
}

void PipePool::give_back(const Pipe& pipe, bool drained) {
  counters_.pipes_in_use.sub();
  if (drained && idle_.size() < kIdleMax) {
    idle_.push_back(pipe);
  } else {
    close(pipe);
  }
}

void PipePool::close(const Pipe& pipe) {
  io_.close(pipe.read_end);
  io_.close(pipe.write_end);
  --open_;
  counters_.pipes_open.sub();
  if (pipe.capacity < kPipeSize) counters_.pipes_clamped.sub();
}

}  // namespace portway
