/** What the attention says about the cells: the statistics that strategies decide from. */
package dev.kvmerge.attention;
