// The packages of config/interop, wherever this file is run from.
import { createRequire } from "node:module";

export const require = createRequire(process.env.FAREBOX_INTEROP_PACKAGES);
