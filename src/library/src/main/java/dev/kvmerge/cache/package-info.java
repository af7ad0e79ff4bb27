/** Holding a context within its cells: the table of what each cell holds, plans, and the context that applies them. */
package dev.kvmerge.cache;
