// What a daemon that has died has left behind, in the hands of its keeper.
#pragma once

#include <memory>
#include <string>

#include "base/error.h"
#include "base/fd.h"
#include "handover/keeper.h"
#include "handover/transfer.h"

namespace portway {

class Predecessor {
 public:
  /// Null if no keeper waits at `path`. kResourceExhausted if there are too few descriptors for what it has;
  /// kInternal if it is another version's, or does not answer.
  static Result<std::unique_ptr<Predecessor>> find(const std::string& path);

  /// The same from a predecessor that lives and waits for this process there. It pauses until take(), or
  /// until this object goes.
  static Result<std::unique_ptr<Predecessor>> await(const std::string& path);

  /// All that it had. What is still in it when this object goes is closed.
  Estate& estate() { return estate_; }
  /// From now on this process acts for the connections, and the keeper does no longer. Until then nothing
  /// that changes them may be done. False if the control block cannot be mapped.
  bool take();

 private:
  Predecessor(std::string path, Fd keeper, Estate estate)
      : path_(std::move(path)), keeper_(std::move(keeper)), estate_(std::move(estate)) {}

  const std::string path_;
  // The keeper keeps what must work meanwhile, as programs on taps, until this connection ends.
  const Fd keeper_;
  Estate estate_;
};

}  // namespace portway
