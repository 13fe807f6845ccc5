// A body that lasts as long as its ticket is valid (control/streams.h). Every body without an end is opened
// here.
//
// Belongs to the control thread.
#pragma once

#include <functional>
#include <memory>

#include "api/http/message.h"
#include "base/error.h"
#include "control/streams.h"

namespace portway {

using MakeStream = std::function<Result<std::shared_ptr<BodyStream>>()>;

/// The stream that `make` makes, bound to the terms. Streams::open()'s error, before anything is made; else
/// make's.
Result<std::shared_ptr<BodyStream>> open_stream(Streams& streams, const StreamTerms& terms,
                                                const MakeStream& make);

}  // namespace portway
