// Control's answers to an id that leads nowhere: the same words, also for what the caller must not see.
#pragma once

#include "base/error.h"

namespace portway {

inline Error no_such_instance() {
  return {ErrorCode::kNotFound,
          "There is no instance with this id; the node's orchestrator registers instances."};
}

inline Error no_such_forward() {
  return {ErrorCode::kNotFound, "This instance has no port forward with this id."};
}

}  // namespace portway
